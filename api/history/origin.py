"""Where a picture comes from, as the one who asked for it tells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from api.engine.codec import Encoding
from api.engine.codec.recipes import plain
from api.engine.wire import Picture
from api.history.jobs import pack_job
from api.models.base import Info
from api.models.jobs import Job, Pixels


@dataclass(frozen=True, slots=True)
class Origin:
    """``session`` is an id or a name; ``parents`` are ids of pictures that this one was made from; those of ``blobs`` are parents too."""

    owner: str
    session: str | None = None
    parents: Sequence[str] = ()
    blobs: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """A picture to be kept. ``job`` makes it again, with the ``inputs`` that it names; ``cover`` is what its thumbnail is made of."""

    kind: str
    model: str
    picture: Picture
    recipe: Mapping[str, Any]
    job: Mapping[str, Any] | None = None
    inputs: Mapping[str, Pixels] = field(default_factory=dict)
    prompt: str | None = None
    directions: Mapping[str, float] = field(default_factory=dict)
    cover: bytes | None = None
    task_id: str | None = None


def entry_of(info: Info, job: Job, encoding: Encoding, recipe: Mapping[str, Any], picture: Picture) -> Entry:
    """What is kept of a computed job."""
    whole, inputs = pack_job(info, job, encoding, picture)
    return Entry(
        kind=type(job).__name__.lower(),
        model=job.model,
        picture=picture,
        recipe=told(recipe),
        job=whole,
        inputs=inputs,
        prompt=getattr(job, "prompt", None),
        directions=getattr(job, "directions", {}),
    )


def told(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe as the picture's file tells it, in JSON's types."""
    return {key: plain(value) for key, value in recipe.items() if value is not None}
