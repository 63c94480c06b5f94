"""Everything that may not be lost, opened once per process."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from random import uniform
from typing import Self

import sqlalchemy as sa

from api.errors import Busy
from api.store.bell import Bell, make_bell
from api.store.blobs import Blobs
from api.store.buckets import Bucket, Folder
from api.store.database import Database, parse_url
from api.store.events import Event, Events
from api.store.feed import Feed, Key
from api.store.groups import Collections, Sessions
from api.store.images import Images
from api.store.queue import Queue
from api.store.schema import migrate
from api.store.tables import events
from api.store.tags import Tags
from api.store.tasks import Tasks
from api.store.trash import Trash
from api.store.users import Users

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """Times in seconds. ``keep``: how long an ended task is kept, ``None`` for ever. ``max_attempts``: workers that a task may cost.

    ``undo``: how long a deleted picture can be restored.
    """

    max_pending: int = 10_000
    max_attempts: int = 3
    keep: float | None = 7 * 86400.0
    undo: float = 86400.0


class Store:
    """``async with await Store.open(data_dir) as store``."""

    def __init__(self, database: Database, bucket: Bucket, bell: Bell, options: Options) -> None:
        self.database = database
        self.events = Events(database, Feed(bell, self.read_events, self.newest_event, self.keys))
        self.tasks = Tasks(database, bell, max_pending=options.max_pending, keep=options.keep)
        self.queue = Queue(database, bell, self.events, max_attempts=options.max_attempts, keep=options.keep)
        self.blobs = Blobs(database, bucket)
        self.users = Users(database)
        self.images = Images(database, self.blobs)
        self.trash, self.undo = Trash(database, self.images), options.undo
        self.sessions, self.collections, self.tags = Sessions(database), Collections(database), Tags(database)
        self.bell = bell
        bell.open()

    @classmethod
    async def open(
        cls,
        data_dir: Path,
        url: str | None = None,
        *,
        bucket: Bucket | None = None,
        bell: Bell | None = None,
        options: Options | None = None,
    ) -> Self:
        """Opens the database, by default a file in ``data_dir``, and migrates it. Raises ``ConfigError``."""
        data_dir.mkdir(parents=True, exist_ok=True)
        database = Database(parse_url(url, data_dir))
        try:
            await migrate(database)
        except BaseException:
            await database.close()
            raise
        return cls(database, bucket or Folder(data_dir / "blobs"), bell or make_bell(database), options or Options())

    async def close(self) -> None:
        await self.events.feed.stop()
        await self.bell.close()
        await self.database.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    async def sweep(self) -> None:
        """Deletes what has expired, a little at a time, so that nobody waits for it."""
        while await self.tasks.sweep() or await self.blobs.sweep() or await self.trash.sweep(self.undo):
            await asyncio.sleep(0.05)

    async def tend(self, interval: float = 60.0, clean: int = 60) -> None:
        """Sweeps for ever, about every ``interval`` seconds; each ``clean`` times bytes without a row are looked for, too."""
        turn = 0
        while True:
            await asyncio.sleep(uniform(0.5, 1.5) * interval)  # several workers should not sweep at once
            turn += 1
            try:
                await self.sweep()
                if turn % clean == 0:
                    await self.blobs.clean()
            except Busy:
                log.warning("nothing was swept: the database is unavailable")
            except Exception:  # whatever it is: tasks are worked on beside this
                log.exception("the sweep failed; it is tried again")

    async def read_events(self, after: int, limit: int) -> list[Event]:
        return await self.events.select(events.c.id > after, limit)

    async def newest_event(self) -> int:
        async with self.database.read() as connection:
            return await connection.scalar(sa.select(sa.func.max(events.c.id))) or 0

    def keys(self, event: Event) -> Iterable[Key]:
        """Who follows an event; a pending one made by another process is news to the workers of this one, too."""
        if event.kind == "pending":
            self.bell.ring("tasks")
        return ("task", event.task_id), ("owner", event.owner)
