"""The limits of one host: a ledger in SQLite, a thread that waits for it when others are at it, and a bell."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Self, TypeVar

from api.conf import LimitConf
from api.errors import Busy, ConfigError
from api.limits.base import Place, State, Wake
from api.limits.bell import Bell, clear, lives, ring
from api.limits.ledger import BUSY_TIMEOUT, Ledger, checkpoint, is_taken

log = logging.getLogger(__name__)
T = TypeVar("T")
FOLDER, FILE, LOCK = "limits", "state-1.sqlite3", "open.lock"  # the number is the schema's
RETRY = 0.5  # seconds
CHECKPOINT = 300  # transactions: SQLite's own thousand pages, or about


class LocalStore:
    """The ``Store`` of one host, under ``tmp_dir``/limits. Open it in the process that uses it, after any fork."""

    def __init__(self, folder: Path, bell: Bell, ledger: Ledger, thread: ThreadPoolExecutor, wake: Wake) -> None:
        self.folder, self.bell, self.ledger, self.thread, self.wake = folder, bell, ledger, thread, wake
        self.loop = asyncio.get_running_loop()
        self.owed: dict[int, bool] = {}  # leaves that are to be done: token, refund
        self.retrying = self.closed = False
        self.handed = 0  # to the thread, and not yet done
        self.patience = BUSY_TIMEOUT
        self.left = CHECKPOINT
        self.places = ledger.conf.block.enabled or ledger.conf.concurrency.enabled
        self.loop.add_reader(bell.fd, self.rung)

    @classmethod
    async def open(cls, conf: LimitConf, tmp_dir: Path, wake: Wake) -> Self:
        """Raises ``ConfigError`` if the state cannot be kept in ``tmp_dir``."""
        folder = tmp_dir / FOLDER
        thread = ThreadPoolExecutor(1, thread_name_prefix="limits")
        try:
            bell, ledger = await asyncio.get_running_loop().run_in_executor(thread, open_files, folder, conf)
        except (OSError, sqlite3.Error) as error:
            thread.shutdown(wait=False)
            raise ConfigError(f"{folder}: the limits' state cannot be opened: {error}; it may be removed while no server runs") from error
        return cls(folder, bell, ledger, thread, wake)

    async def enter(self, token: int, client: str) -> Place:
        return await self.ask(lambda: self.ledger.enter(token, client))

    async def leave(self, token: int, *, refund: bool) -> None:
        if not self.places and not refund:
            self.ledger.hits.pop(token, None)
            return
        await self.ask(lambda: self.owe(token, refund))

    async def look(self) -> Mapping[int, State]:
        return await self.ask(self.ledger.look)

    async def close(self) -> None:
        self.loop.remove_reader(self.bell.fd)
        self.closed = True
        try:
            await self.ask(self.ledger.close)
        finally:
            self.bell.close()
            self.thread.shutdown(wait=False)

    def rung(self) -> None:
        self.bell.drain()
        self.wake({})

    async def ask(self, work: Callable[[], T]) -> T:
        """The work's result. It is done even if the caller is cancelled, and in the order of asking.

        It takes less time than to have a thread do it, so it is done here and now; unless another process is just at the file, for which
        a thread waits.
        """
        self.count_down()
        try:
            if not self.handed:
                try:
                    self.ledger.set_patience(0.0)
                    return self.perform(work, self.wake)
                except sqlite3.Error as error:
                    if not is_taken(error):
                        raise
            return await asyncio.shield(self.hand_over(work))
        except sqlite3.Error as error:
            log.error("limits: %s", error)
            raise Busy() from error

    def hand_over(self, work: Callable[[], T]) -> asyncio.Future[T]:
        """Has the thread do it. While it has anything to do, the ledger is the thread's."""
        self.handed += 1
        future = asyncio.wrap_future(self.thread.submit(self.perform_patiently, work))
        future.add_done_callback(self.take_back)
        return future

    def take_back(self, future: asyncio.Future[T]) -> None:
        self.handed -= 1
        if not future.cancelled():
            future.exception()  # has been told, or is tried again

    def perform_patiently(self, work: Callable[[], T]) -> T:
        self.ledger.set_patience(self.patience)
        return self.perform(work, self.wake_from_thread)

    def perform(self, work: Callable[[], T], wake: Wake) -> T:
        """What is owed, then the work, then those are woken that were given something."""
        try:
            self.settle()
            return work()
        finally:
            self.announce(wake)

    def wake_from_thread(self, moves: Mapping[int, State]) -> None:
        self.loop.call_soon_threadsafe(self.wake, moves)

    def count_down(self) -> None:
        """Now and then the thread brings the file up to date, which waits for the disk."""
        self.left -= 1
        if self.left <= 0:
            self.left = CHECKPOINT
            self.hand_over(self.bring_up_to_date)

    def bring_up_to_date(self) -> None:
        try:
            checkpoint(self.folder / FILE)
        except sqlite3.Error as error:
            log.warning("limits: %s", error)

    def owe(self, token: int, refund: bool) -> None:
        self.owed[token] = refund
        self.settle()

    def settle(self) -> None:
        """A leave that fails, say on a full disk, is tried again: its place must not stay taken as long as this process lives."""
        try:
            for token, refund in list(self.owed.items()):
                self.ledger.leave(token, refund)
                del self.owed[token]
        except sqlite3.Error:
            self.loop.call_soon_threadsafe(self.retry)
            raise

    def retry(self) -> None:
        if not self.retrying:
            self.retrying = True
            self.loop.call_later(RETRY, self.try_again)

    def try_again(self) -> None:
        self.retrying = False
        if not self.closed:
            self.hand_over(int)

    def announce(self, wake: Wake) -> None:
        moves, self.ledger.moves = self.ledger.moves, []
        own = {token: state for holder, token, state in moves if holder == self.bell.name}
        if own:
            wake(own)
        for holder in {holder for holder, _, _ in moves if holder != self.bell.name}:
            ring(self.folder, holder)


def open_files(folder: Path, conf: LimitConf) -> tuple[Bell, Ledger]:
    """A new bell and a connection; leftovers of the dead are removed, the state is kept."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with locked(folder / LOCK):
        clear(folder)
        bell = Bell(folder)
        try:
            return bell, Ledger(folder / FILE, bell.name, conf, lambda name: lives(folder, name))
        except BaseException:
            bell.close()
            raise


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Processes open one after the other: a bell must not be cleared before it is heard, nor WAL be switched on by two."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
