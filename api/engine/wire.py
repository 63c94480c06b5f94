"""The protocol between web workers and an engine: msgpack frames over a stream, each with its length before it.

Messages are frozen dataclasses. A dataclass travels as a list of its name and its fields, an array as its type, shape and bytes;
nothing else is ever rebuilt, so that a frame cannot name what is not listed here.
"""

from __future__ import annotations

import asyncio
import struct
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, cast

import msgpack
import numpy as np

from api import errors
from api.engine.codec import Encoding
from api.models.base import Info
from api.models.jobs import Diffuse, Edit, Floats, Generate, Job, Project, Synthesize

LENGTH = struct.Struct(">I")
MAX_FRAME = 1 << 30
LARGE = 1 << 20
DATACLASS, ARRAY = 1, 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Submit:
    """A job to do. ``deadline`` is a reading of the host's monotonic clock in seconds."""

    id: int
    job: Job
    client: str
    deadline: float
    encoding: Encoding
    recipe: dict[str, Any] = field(default_factory=dict)
    alone: bool = False  # it was being computed when an engine died: nobody is to share its fate
    progress: bool = False  # its steps are reported
    previews: int = 0  # and so many of the reports, evenly spread, show how far the picture is
    trace: str | None = None  # the span that it belongs to, as a traceparent


@dataclass(frozen=True, slots=True)
class Cancel:
    id: int


@dataclass(frozen=True, slots=True)
class Hello:
    """Sent when a client connects and again whenever a model is ready or has failed."""

    infos: list[Info]
    failures: dict[str, str]  # model id → why it cannot be served
    loading: list[str]


@dataclass(frozen=True, slots=True)
class Diary:
    """Sent first: the file in which the engine notes what it begins, and the client's number there. Who has it hears no ``Started``."""

    path: str
    client: int


@dataclass(frozen=True, slots=True)
class Bye:
    """The engine drains: it finishes what it has and takes nothing more."""


@dataclass(frozen=True, slots=True)
class Return:
    """A job came after ``Bye``: it belongs to the successor."""

    id: int


@dataclass(frozen=True, slots=True)
class Started:
    """Of requests whose progress is reported, and where there is no ``Diary``."""

    ids: list[int]


@dataclass(frozen=True, slots=True)
class Progress:
    id: int
    index: int
    total: int
    preview: bytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A finished picture: its encoded bytes and what it was made from."""

    data: bytes
    mime_type: str
    width: int
    height: int
    seed: int
    label: str | None = None
    latent: Floats | None = None
    styles: Floats | None = None
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Done:
    id: int
    picture: Picture


@dataclass(frozen=True, slots=True)
class Failed:
    id: int
    error: str  # a name in api.errors
    detail: Any
    retry_after: float | None = None


KNOWN: Mapping[str, type[Any]] = {
    cls.__name__: cls
    for group in (
        (Submit, Cancel, Hello, Diary, Bye, Return, Started, Progress, Picture, Done, Failed, Encoding, Info),
        (Generate, Synthesize, Edit, Project, Diffuse),
    )
    for cls in group
}
NAMES = {cls: tuple(item.name for item in fields(cls)) for cls in KNOWN.values()}
TAGS = {cls: msgpack.ExtType(DATACLASS, name.encode()) for name, cls in KNOWN.items()}
PACKERS = threading.local()


def preview_steps(total: int, count: int) -> set[int]:
    """After which steps of ``total`` previews are shown: the k-th of n where k of n + 1 parts of the way are done."""
    return {step for k in range(1, count + 1) if 0 < (step := k * total // (count + 1)) < total}


def fail(ticket: int, error: errors.ServerError) -> Failed:
    detail = error.detail if isinstance(error.detail, str) else dict(error.detail)
    return Failed(ticket, type(error).__name__, detail, error.retry_after)


def rebuild(failed: Failed) -> errors.ServerError:
    """The error that an engine told of."""
    cls = errors.tree().get(failed.error, errors.ServerError)
    error = cls.__new__(cls)
    errors.ServerError.__init__(error, failed.detail, retry_after=failed.retry_after)
    return error


def pack(message: object) -> bytes:
    """A whole frame, its length included."""
    if not hasattr(PACKERS, "own"):  # a packer brings a large buffer: making one takes longer than most messages
        PACKERS.own = msgpack.Packer(default=reduce)
    body: bytes = PACKERS.own.pack(message)
    if len(body) > LARGE:
        del PACKERS.own  # its buffer does not get smaller again
    return LENGTH.pack(len(body)) + body


def unpack(body: bytes | memoryview) -> Any:
    """The message in a frame's body. Raises ``ValueError`` when there is none."""
    try:
        return msgpack.unpackb(body, ext_hook=recognise, list_hook=restore, strict_map_key=False)
    except (KeyError, TypeError, IndexError, msgpack.exceptions.ExtraData, msgpack.exceptions.FormatError) as error:
        raise ValueError(f"not a message: {error}") from error


def unpack_all(frames: bytes) -> Iterator[Any]:
    """The messages of whole frames, one after the other. Raises ``ValueError``."""
    start = 0
    while start < len(frames):
        (length,) = LENGTH.unpack_from(frames, start)
        start += LENGTH.size
        yield unpack(memoryview(frames)[start : start + length])
        start += length


def reduce(value: Any) -> Any:
    """A list that begins with a tag, which nothing else does; what is inside is reduced when its turn comes."""
    if (tag := TAGS.get(type(value))) is not None:
        return [tag, *[getattr(value, name) for name in NAMES[type(value)]]]
    if isinstance(value, np.ndarray):
        array = np.ascontiguousarray(value)
        return [msgpack.ExtType(ARRAY, array.dtype.str.encode()), array.shape, array.data.cast("B") if array.size else b""]
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} cannot be sent")


def recognise(code: int, data: bytes) -> Any:
    """What a tag stands for: one of our classes, or a type of numbers."""
    if code == DATACLASS:
        return KNOWN[data.decode()]
    if code == ARRAY:
        return np.dtype(data.decode())
    raise ValueError(f"unknown extension {code}")


def restore(values: list[Any]) -> Any:
    """What ``reduce`` made a list of; a list that was one stays one."""
    tag = values[0] if values else None
    if isinstance(tag, type):
        return tag(**dict(zip(NAMES[tag], tupled(tag, values[1:]), strict=True)))
    if isinstance(tag, np.dtype):
        return np.frombuffer(values[2], tag).reshape(values[1])
    return values


def tupled(cls: type[Any], values: list[Any]) -> Iterable[Any]:
    """msgpack knows lists only; ``Info`` is a value and holds tuples."""
    return (tuple(value) if isinstance(value, list) else value for value in values) if cls is Info else values


class Connection(asyncio.Protocol):
    """One end of the stream. Calls ``receive(connection, message)`` and, once, ``lost(connection)``."""

    # A peer that does not read is cut off before its unread pictures fill the memory.
    MAX_UNSENT = 1 << 28

    def __init__(self, receive: Callable[[Connection, Any], None], lost: Callable[[Connection], None]) -> None:
        self.receive, self.lost = receive, lost
        self.transport: asyncio.Transport | None = None
        self.buffer = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's are no subclass

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        try:
            for body in self.take_frames():
                self.receive(self, unpack(body))
        except ValueError:
            self.abort()

    def take_frames(self) -> Iterator[bytes]:
        start = 0
        while len(self.buffer) - start >= LENGTH.size:
            (length,) = LENGTH.unpack_from(self.buffer, start)
            if length > MAX_FRAME:
                raise ValueError(f"a frame of {length} bytes")
            end = start + LENGTH.size + length
            if len(self.buffer) < end:
                break
            yield bytes(self.buffer[start + LENGTH.size : end])
            start = end
        del self.buffer[:start]

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        self.lost(self)

    def send(self, *messages: object) -> None:
        self.write(b"".join(map(pack, messages)))

    def write(self, frames: bytes) -> None:
        """Sends packed frames; to a peer that is gone, nothing."""
        if self.transport is None or self.transport.is_closing():
            return
        self.transport.write(frames)
        if self.transport.get_write_buffer_size() > self.MAX_UNSENT:
            self.abort()

    def close(self) -> None:
        if self.transport is not None:
            self.transport.close()

    def abort(self) -> None:
        if self.transport is not None:
            self.transport.abort()
