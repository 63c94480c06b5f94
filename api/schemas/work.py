"""What all tasks share, and what an engine is given for one."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from pydantic import BaseModel, Field

from api.engine.codec import Encoding, Format
from api.engine.wire import Picture
from api.history.origin import Entry, entry_of
from api.models.base import Info
from api.models.jobs import Job, Pixels
from api.schemas.requests import SEEDS


@dataclass(frozen=True, slots=True)
class Work:
    """What an engine is given for a task."""

    job: Job
    encoding: Encoding
    recipe: dict[str, Any]

    def entry(self, info: Info, picture: Picture) -> Entry:
        """What the history keeps of it."""
        return entry_of(info, self.job, self.encoding, self.recipe, picture)


class Task(BaseModel):
    """What all kinds share."""

    kind: ClassVar[str]
    """The kind of job that a model must take for it."""
    model: str | None = Field(None, min_length=1, description="The model's id; the first that can do it if absent")
    seed: int | None = Field(None, ge=0, lt=SEEDS, description="Makes the picture repeatable; drawn and told if absent")
    previews: int = Field(0, ge=0, le=8, description="How many progress events show how far the picture is, where it is made in steps")
    session: str | None = Field(
        None, min_length=1, max_length=200, description="For the history: a session's id or name; X-Session's if absent"
    )
    parents: list[str] | None = Field(
        None, max_length=16, description="For the history: ids of pictures that it is made from; X-Parents' if absent"
    )

    @property
    def blobs(self) -> Mapping[str, str]:
        """The pictures that it starts from: the field's name → a blob's id."""
        return {}

    def fixed(self, info: Info, mark: str | None) -> Self:
        """With model and seed settled, so that every worker makes the same of it. One ``mark`` always gives the same seed."""
        drawn = secrets.randbelow(SEEDS) if mark is None else int.from_bytes(hashlib.sha256(mark.encode()).digest()[:4])
        return self.model_copy(update={"model": info.id, "seed": drawn if self.seed is None else self.seed})

    def remembering(self, session: str | None, parents: Sequence[str]) -> Self:
        """With what the request's headers tell the history, where the body does not."""
        told = {"session": self.session or session, "parents": self.parents or list(parents) or None}
        return self.model_copy(update=told)


class PictureTask(Task):
    """What becomes one picture."""

    format: Format | None = Field(None, description="The picture's; PNG, or JPEG from models that are `lossy`, if absent")

    def encoding(self, info: Info) -> Encoding:
        return Encoding(self.format or ("jpeg" if info.lossy else "png"))

    def work(self, info: Info, pictures: Mapping[str, Pixels]) -> Work:
        """``pictures`` by the names of ``blobs``. Raises ``BadInput``, ``NotFound``."""
        raise NotImplementedError(type(self).__name__)
