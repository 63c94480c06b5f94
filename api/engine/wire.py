"""The protocol between web workers and an engine: msgpack frames over a stream, each with its length before it.

A message travels as a list of its name and its fields, an array as its type, shape and bytes. What comes is checked against the fields'
types; nothing else is ever rebuilt, so that a frame cannot name what is not listed here.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import msgspec
import numpy as np

from api import errors
from api.engine.codec import Encoding
from api.models.base import Info
from api.models.jobs import Floats, Work

LENGTH = struct.Struct(">I")
MAX_FRAME = 1 << 30


class Message(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """What either end says."""


class Submit(Message, frozen=True, kw_only=True):
    """A job to do. ``deadline`` is a reading of the host's monotonic clock in seconds."""

    id: int
    job: Work
    client: str
    deadline: float
    encoding: Encoding
    recipe: dict[str, Any] = msgspec.field(default_factory=dict)
    alone: bool = False  # it was being computed when an engine died: nobody is to share its fate
    progress: bool = False  # its steps are reported
    previews: int = 0  # and so many of the reports, evenly spread, show how far the picture is
    trace: str | None = None  # the span that it belongs to, as a traceparent


class Cancel(Message, frozen=True):
    id: int


class Hello(Message, frozen=True):
    """Sent when a client connects and again whenever a model is ready or has failed."""

    infos: list[Info]
    failures: dict[str, str]  # model id → why it cannot be served
    loading: list[str]


class Diary(Message, frozen=True):
    """Sent first: the file in which the engine notes what it begins, and the client's number there. Who has it hears few ``Started``."""

    path: str
    client: int


class Bye(Message, frozen=True):
    """The engine drains: it finishes what it has and takes nothing more."""


class Return(Message, frozen=True):
    """A job came after ``Bye``: it belongs to the successor."""

    id: int


class Started(Message, frozen=True):
    """Of requests whose progress is reported, of long ones, which a ``Diary`` may forget, and where there is none."""

    ids: list[int]


class Progress(Message, frozen=True):
    id: int
    index: int
    total: int
    preview: bytes | None = None


class Picture(Message, frozen=True, kw_only=True):
    """A finished picture: its encoded bytes and what it was made from."""

    data: bytes
    mime_type: str
    width: int
    height: int
    seed: int
    label: str | None = None
    latent: Floats | None = None
    styles: Floats | None = None
    extra: dict[str, Any] = msgspec.field(default_factory=dict)


class Done(Message, frozen=True):
    id: int
    picture: Picture


class Failed(Message, frozen=True):
    id: int
    error: str  # a name in api.errors
    detail: Any
    retry_after: float | None = None


Known = Submit | Cancel | Hello | Diary | Bye | Return | Started | Progress | Picture | Done | Failed | Info | Work


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
    """A whole frame, its length included. Raises ``BadInput`` for an integer that no word of 64 bits holds."""
    try:
        body = ENCODER.encode(message)
    except OverflowError:
        raise errors.BadInput("found an integer of more than 64 bits") from None
    return LENGTH.pack(len(body)) + body


def unpack(body: bytes | memoryview) -> Any:
    """The message in a frame's body. Raises ``ValueError`` when there is none."""
    try:
        return DECODER.decode(body)
    except errors.ServerError as error:  # what ``Encoding`` does not know
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
    """What msgpack has no word for, in its words."""
    if isinstance(value, np.ndarray):
        array = np.ascontiguousarray(value)
        return array.dtype.str, array.shape, array.data.cast("B") if array.size else b""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} cannot be sent")


def restore(_: type[Any], value: Any) -> Any:
    """An array: nothing else has to be made of msgpack's words."""
    kind, shape, data = value
    return np.frombuffer(data, np.dtype(kind)).reshape(shape)


ENCODER = msgspec.msgpack.Encoder(enc_hook=reduce)
DECODER = msgspec.msgpack.Decoder(Known, dec_hook=restore)


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
