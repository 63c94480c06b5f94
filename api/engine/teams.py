"""How many cores of a CPU compute a picture whose network has them all to itself."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import numpy as np

from api.models.base import Model, go_on
from api.models.jobs import Generate, Pixels

log = logging.getLogger(__name__)
EACH = 400_000  # parameters: with fewer of them, cores wait for each other longer than they compute
ENOUGH = 0.05  # seconds of pictures that are compared


def choose_team(model: Model, cores: int, use: Callable[[int], None], check: bool = True) -> int:
    """As many cores as the network is large, if a team of them makes the same picture as one core does, to the last bit.

    Kernels are written so that they do: each of their sums is one thread's. But a picture must not change with what else a server has to
    do, so ``check`` has it seen, where the model has a kind of job that needs nothing but a seed.
    """
    team = min(cores, max(1, model.info.parameters // EACH))
    if team == 1 or not check or model.info.long or Generate.__name__ not in model.info.kinds:
        return team

    def make(seed: int, count: int) -> Pixels:
        use(count)
        (output,) = model.run([model.prepare(Generate(model=model.info.id, seed=seed))], go_on)
        return output.image

    end, seed = time.monotonic() + ENOUGH, 0
    while seed == 0 or time.monotonic() < end:
        if not np.array_equal(make(seed, team), make(seed, 1)):
            log.warning("%s: %d cores make another picture than one does; its pictures take one each", model.info.id, team)
            return 1
        seed += 1
    return team
