"""A process's bell: a FIFO that it alone reads. Others ring it to wake the process, and see by it whether the process lives.

The kernel closes the reading end when the process ends, however it ends; writing to a FIFO that nobody reads fails. So
a bell cannot be mistaken for another's as a process id can, and nothing is left to expire.
"""

from __future__ import annotations

import errno
import functools
import os
import secrets
import weakref
from pathlib import Path

SUFFIX = ".bell"


class Bell:
    """Belongs to the process that made it; a forked child lets go of it at once, so that it does not keep a dead parent alive."""

    def __init__(self, folder: Path) -> None:
        self.name = secrets.token_hex(8)
        self.path = folder / (self.name + SUFFIX)
        os.mkfifo(self.path, 0o600)
        # Also open for writing: without any writer the FIFO would read as ended all the time.
        self.fd = os.open(self.path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        forget_in_children()
        BELLS.add(self)

    def drain(self) -> None:
        """Takes all the rings so far."""
        try:
            while len(os.read(self.fd, 4096)) == 4096:
                pass
        except BlockingIOError:
            pass

    def close(self) -> None:
        self.let_go()
        self.path.unlink(missing_ok=True)

    def let_go(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


BELLS: weakref.WeakSet[Bell] = weakref.WeakSet()


@functools.cache
def forget_in_children() -> None:
    os.register_at_fork(after_in_child=let_go_of_all)


def let_go_of_all() -> None:
    for bell in list(BELLS):
        bell.let_go()


def ring(folder: Path, name: str, sound: bytes = b"\0") -> bool:
    """Wakes the bell's owner; false if it is dead."""
    try:
        fd = os.open(folder / (name + SUFFIX), os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        # With any other fault, such as that no descriptor is free, nobody can tell: it looks for itself now and then.
        return error.errno not in (errno.ENXIO, errno.ENOENT)
    try:
        if sound:
            os.write(fd, sound)
    except BlockingIOError:
        pass  # so many rings are waiting that it will wake anyway
    except BrokenPipeError:
        return False
    finally:
        os.close(fd)
    return True


def lives(folder: Path, name: str) -> bool:
    return ring(folder, name, b"")


def clear(folder: Path) -> None:
    """Removes the bells of the dead. Only safe while nobody makes one."""
    for path in folder.glob("*" + SUFFIX):
        if not lives(folder, path.stem):
            path.unlink(missing_ok=True)
