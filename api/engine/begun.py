"""Which requests an engine has begun, written where it outlives the engine: a ring of the latest ones, in a file that is mapped.

Web workers ask for it when the engine has died. To tell each of them each time by a message wakes both processes for every lone picture,
and its lane waits for the interpreter lock meanwhile: 0.3 ms of 8.
"""

from __future__ import annotations

import itertools
import logging
import mmap
import os
import struct
from pathlib import Path

log = logging.getLogger(__name__)
SUFFIX = ".begun"
ENTRY = struct.Struct("<QQ")  # the client's number, from 1, and the request's
COUNT = 4096  # more than are begun and not yet answered at any time
SIZE = COUNT * ENTRY.size


class Begun:
    """The engine's side. Raises ``OSError`` if there is no room for the file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.touch(0o600)
            path.write_bytes(bytes(SIZE))  # what has a place on the disk can be written later, too
            with path.open("r+b") as file:
                self.ring = mmap.mmap(file.fileno(), SIZE)
        except OSError:
            path.unlink(missing_ok=True)
            raise
        self.places = itertools.cycle(range(0, SIZE, ENTRY.size))

    def note(self, client: int, request: int) -> None:
        """From any thread."""
        ENTRY.pack_into(self.ring, next(self.places), client, request)

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)


def open_begun(socket: Path) -> Begun | None:
    """The ring of the engine at ``socket``; leftovers of dead ones are removed. Without room on the disk there is none."""
    for path in socket.parent.glob(f"{socket.stem}.*{SUFFIX}"):
        if not Path("/proc", path.suffixes[0][1:]).exists():
            path.unlink(missing_ok=True)
    try:
        return Begun(socket.with_suffix(f".{os.getpid()}{SUFFIX}"))
    except OSError as error:
        log.warning("what is begun is told by messages: %s", error)
        return None


def read_begun(path: Path, client: int) -> set[int]:
    """The client's requests that an engine which has died had begun lately."""
    try:
        ring = path.read_bytes()
    except OSError:
        return set()
    return {request for owner, request in ENTRY.iter_unpack(ring) if owner == client}
