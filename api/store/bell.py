"""How those who wait hear that something is new, so that they need not wait for their next look at the database."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from api.store.database import GREETING, Database, hang_up_after, patience

log = logging.getLogger(__name__)
Topic = Literal["tasks", "events"]
TOPICS: tuple[Topic, ...] = get_args(Topic)


class Bell(Protocol):
    """A seam: Redis can stand behind it, too. A lost ring costs only the wait for the next look.

    ``poll``: seconds between looks of those who wait, for what the bell may not have told.
    """

    poll: float

    def open(self) -> None: ...

    async def close(self) -> None: ...

    def count(self, topic: Topic) -> int:
        """How often the topic rang; taken before looking, so that no ring falls between the look and the wait."""
        ...

    def ring(self, topic: Topic) -> None: ...

    async def wait(self, topic: Topic, count: int, timeout: float) -> None:
        """Returns when the topic has rung more than ``count`` times, or after ``timeout`` seconds."""
        ...


def make_bell(database: Database) -> Bell:
    """The bell that reaches the other processes at this database, where there is one."""
    if database.sqlite:
        return FileBell(Path(str(database.url.database)))
    return ListenBell(database) if database.url.drivername == "postgresql+asyncpg" else LocalBell()


class LocalBell:
    """A bell heard in this process only."""

    poll = 0.2

    def __init__(self) -> None:
        self.counts: dict[Topic, int] = dict.fromkeys(TOPICS, 0)
        self.waiting: dict[Topic, set[asyncio.Future[None]]] = {topic: set() for topic in TOPICS}
        self.running: asyncio.Task[None] | None = None

    def open(self) -> None:
        self.running = asyncio.create_task(self.run(), name="bell")

    async def run(self) -> None:
        """What a member does all the time."""

    async def close(self) -> None:
        if self.running is not None:
            self.running.cancel()
            await asyncio.wait([self.running])

    def count(self, topic: Topic) -> int:
        return self.counts[topic]

    def ring(self, topic: Topic) -> None:
        self.counts[topic] += 1
        for future in self.waiting[topic]:
            if not future.done():
                future.set_result(None)

    async def wait(self, topic: Topic, count: int, timeout: float) -> None:
        if self.count(topic) > count:
            return
        future = asyncio.get_running_loop().create_future()
        self.waiting[topic].add(future)
        try:
            await asyncio.wait([future], timeout=timeout)
        finally:
            self.waiting[topic].discard(future)
            future.cancel()


class FileBell(LocalBell):
    """SQLite counts commits of all processes in shared memory: to ask for that number is a hundredth of a look at the database.

    It tells nothing of what was written; whoever reads the events rings for the tasks among them.
    """

    poll = 1.0
    interval = 0.05

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    async def run(self) -> None:
        with closing(sqlite3.connect(self.path, timeout=0.0, isolation_level=None)) as connection:
            last = version(connection)
            while True:
                await asyncio.sleep(self.interval)
                if (now := version(connection)) != last:
                    last = now
                    self.ring("events")


def version(connection: sqlite3.Connection) -> int:
    """A number that changes with every commit of another connection."""
    try:
        return int(connection.execute("PRAGMA data_version").fetchone()[0])
    except sqlite3.OperationalError:  # locked, while a log file is begun anew
        return -1


class ListenBell(LocalBell):
    """PostgreSQL's LISTEN and NOTIFY, on a connection of its own. An idle one is tried now and then, as nothing tells that it is dead."""

    poll = 1.0
    beat = 10.0

    def __init__(self, database: Database) -> None:
        super().__init__()
        self.database = database
        self.unsent: set[Topic] = set()
        self.news = asyncio.Event()

    def ring(self, topic: Topic) -> None:
        super().ring(topic)
        self.unsent.add(topic)
        self.news.set()

    async def run(self) -> None:
        while True:
            try:
                await self.serve()
            except Exception as error:
                log.warning("no notifications from the database, looking every %s s instead: %s", self.poll, error)
            await asyncio.sleep(1.0)

    async def serve(self) -> None:
        engine = create_async_engine(self.database.url, poolclass=NullPool, hide_parameters=True, connect_args=patience(self.database.url))
        try:
            async with engine.connect() as connection:
                driver: Any = (await connection.get_raw_connection()).driver_connection
                try:
                    await self.talk(driver)
                finally:
                    driver.terminate()  # a server that vanished would not take a leave
                    await connection.invalidate()
        finally:
            with suppress(Exception):
                await engine.dispose()

    async def talk(self, driver: Any) -> None:
        driver.add_termination_listener(lambda _: self.news.set())
        with hang_up_after(GREETING, driver):
            for topic in TOPICS:
                await driver.add_listener(f"store_{topic}", self.hear(topic, driver.get_server_pid()))
        while not driver.is_closed():
            with suppress(TimeoutError):
                async with asyncio.timeout(self.beat):
                    await self.news.wait()
            self.news.clear()
            topics, self.unsent = self.unsent, set()
            with hang_up_after(GREETING, driver):
                for command in [f"NOTIFY store_{topic}" for topic in topics] or ["SELECT 1"]:
                    await driver.execute(command)
        raise ConnectionError("the connection was closed")

    def hear(self, topic: Topic, own: int) -> Callable[..., None]:
        return lambda connection, sender, *_: None if sender == own else LocalBell.ring(self, topic)
