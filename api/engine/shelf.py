"""The models of one device: in memory, or parked until somebody wants them again.

With a budget the least recently used ones make room for the one that is wanted. All are loaded once at the start, so that what they are is
known; where they do not all fit, the last ones stay.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping

from api.models.base import Info, Model

log = logging.getLogger(__name__)


class Shelf:
    """``load`` gives a model by its id, ``weigh`` its bytes, ``tidy`` clears up when one has left. ``budget`` is in bytes; 0: no limit.

    ``bring`` belongs to the device's thread; the rest may be read from any.
    """

    def __init__(
        self,
        load: Callable[[str], Model],
        weigh: Callable[[Info], int] = lambda info: 4 * info.parameters,
        budget: int = 0,
        tidy: Callable[[], None] = lambda: None,
    ) -> None:
        self.load, self.weigh, self.budget, self.tidy = load, weigh, budget, tidy
        self.loaded: dict[str, Model] = {}  # the least recently used first
        self.infos: dict[str, Info] = {}  # of all that were ever loaded
        self.seconds: dict[str, float] = {}  # that loading took the last time

    @classmethod
    def holding(cls, models: Mapping[str, Model]) -> Shelf:
        """A shelf of models that are there and stay."""
        shelf = cls(models.__getitem__)
        for model_id in models:
            shelf.bring(model_id)
        return shelf

    def knows(self, model_id: str) -> bool:
        return model_id in self.infos

    def bring(self, model_id: str) -> Model:
        """The model, in memory. Raises what loading it raises."""
        model = self.loaded.get(model_id)
        if model is None:
            begun = time.monotonic()
            if model_id in self.infos:
                self.make_room(self.weigh(self.infos[model_id]))
            model = self.load(model_id)
            self.seconds[model_id] = time.monotonic() - begun
            self.infos[model_id] = model.info
            self.make_room(self.weigh(model.info))
        self.loaded = {name: other for name, other in self.loaded.items() if name != model_id} | {model_id: model}
        return model

    def make_room(self, weight: int) -> None:
        """Parks models until ``weight`` more bytes fit, or none is left."""
        while self.budget and self.loaded and weight + sum(self.weigh(model.info) for model in self.loaded.values()) > self.budget:
            oldest = next(iter(self.loaded))
            self.loaded = {name: model for name, model in self.loaded.items() if name != oldest}
            self.tidy()
            log.info("%s makes room", oldest)
