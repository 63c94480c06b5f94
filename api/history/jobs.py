"""Jobs as JSON that makes the same picture again, and back.

Vectors stand in it as base64 of ``.npy``; pictures that a job starts from are named, and kept as files.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from msgspec.structs import asdict, replace

from api.engine.arrays import decode_array, encode_array
from api.engine.codec import Encoding
from api.engine.wire import Picture
from api.errors import Conflict
from api.models.base import Info
from api.models.jobs import JOBS, Job, Pixels

ARRAY, INPUT = "npy", "input"
MOST = 1 << 28
"""Bytes of a vector; what is read here was written here."""


def pack_job(info: Info, job: Job, encoding: Encoding, picture: Picture) -> tuple[dict[str, Any], dict[str, Pixels]]:
    """The job with all that the model settled, and its pictures by name."""
    inputs: dict[str, Pixels] = {}
    told: dict[str, Any] = {}
    settled = settle(job, picture)
    for name in settled.__struct_fields__:
        value = getattr(settled, name)
        if isinstance(value, np.ndarray) and value.dtype == np.uint8:
            inputs[name] = value
            told[name] = {INPUT: name, "axes": value.ndim}
        elif isinstance(value, np.ndarray):
            told[name] = {ARRAY: encode_array(value)}
        elif value is not None:
            told[name] = dict(value) if isinstance(value, Mapping) else value
    return {"kind": type(job).__name__, "digest": info.digest, "encoding": asdict(encoding), "parameters": told}, inputs


def settle(job: Job, picture: Picture) -> Job:
    """What was left to the model is what it chose: a changed default in the TOML does not change the picture."""
    open_ones = {name for name in job.__struct_fields__ if getattr(job, name) is None}
    return replace(job, **{name: value for name, value in picture.extra.items() if name in open_ones} | {"seed": picture.seed})


def unpack_job(told: Mapping[str, Any], pictures: Mapping[str, Pixels]) -> tuple[Job, Encoding]:
    """Raises ``Conflict`` where this version does not know such jobs."""
    cls = JOBS.get(told["kind"])
    if cls is None:
        raise Conflict(f"a picture of the kind {told['kind']!r} cannot be made again by this server")
    try:
        values = {name: read_value(value, pictures) for name, value in told["parameters"].items()}
        return cls(**values), Encoding(**told["encoding"])
    except (KeyError, TypeError):
        raise Conflict("the picture was kept by a version whose parameters this one does not know") from None


def read_value(value: Any, pictures: Mapping[str, Pixels]) -> Any:
    if isinstance(value, dict) and set(value) == {ARRAY}:
        return decode_array(value[ARRAY], max_bytes=MOST)
    if isinstance(value, dict) and set(value) == {INPUT, "axes"}:
        pixels = pictures[value[INPUT]]
        return pixels[:, :, 0] if value["axes"] == 2 else pixels
    return value
