"""Events of tasks: numbered 1, 2, 3, … per task without gaps, and by a global id that grows in the order of commits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from api.store.database import Database, Transaction
from api.store.feed import Feed, Stream
from api.store.tables import Now, Row, events

LAST = frozenset({"finished", "cancelled", "failed"})
"""After one of these a task has no further event."""
COLUMNS = (events.c.id, events.c.task_id, events.c.number, events.c.owner, events.c.kind, events.c.data, events.c.created)


@dataclass(frozen=True, slots=True)
class Event:
    """``id`` is global, ``number`` counts within the task; ``created`` is Unix seconds."""

    id: int
    task_id: str
    number: int
    owner: str
    kind: str
    data: Mapping[str, Any]
    created: float

    @property
    def last(self) -> bool:
        return self.kind in LAST


async def append(database: Database, connection: Transaction, task: Row, kind: str, data: Mapping[str, Any]) -> None:
    """Adds the event number ``task.events`` in the transaction that changed the task; it locks no further rows."""
    await database.order(connection)
    row = {"task_id": task.id, "number": task.events, "owner": task.owner, "kind": kind, "data": data, "created": Now()}
    await connection.execute(sa.insert(events).values(row))


class Events:
    def __init__(self, database: Database, feed: Feed[Event]) -> None:
        self.database = database
        self.feed = feed

    async def since(self, task_id: str, number: int = 0, limit: int = 1000) -> list[Event]:
        """The task's events after ``number``, oldest first."""
        return await self.select(sa.and_(events.c.task_id == task_id, events.c.number > number), limit)

    async def of_owner(self, owner: str, since: int = 0, limit: int = 1000) -> list[Event]:
        """The events of all tasks of an owner with an id greater than ``since``, oldest first."""
        return await self.select(sa.and_(events.c.owner == owner, events.c.id > since), limit)

    async def last(self, task_id: str) -> Event | None:
        query = sa.select(*COLUMNS).where(events.c.task_id == task_id).order_by(events.c.number.desc()).limit(1)
        async with self.database.read() as connection:
            row = (await connection.execute(query)).one_or_none()
        return None if row is None else Event(*row)

    def follow(self, task_id: str, since: int = 0) -> Stream[Event]:
        """The task's events after number ``since``, those to come too, up to its last one."""

        async def load(number: int) -> list[Event]:
            # One event more than asked for, or the newest: a client that already has the last one must not wait for ever.
            last = None if number == 0 else await self.last(task_id)
            return await self.since(task_id, number) or ([last] if last else [])

        return Stream(self.feed, ("task", task_id), load, lambda event: event.number, since, lambda event: event.last)

    def follow_owner(self, owner: str, since: int | None = None) -> Stream[Event]:
        """The owner's events with an id greater than ``since``, those to come too; without ``since`` only those to come."""

        async def load(number: int) -> list[Event]:
            return await self.of_owner(owner, number)

        return Stream(self.feed, ("owner", owner), load, lambda event: event.id, since)

    def awake(self) -> Stream[Event]:
        """Follows nothing, but keeps the feed looking, which rings for other processes' tasks."""

        async def load(number: int) -> list[Event]:
            return []

        return Stream(self.feed, ("nobody", ""), load, lambda event: event.id, None)

    async def select(self, condition: sa.ColumnElement[bool], limit: int) -> list[Event]:
        async with self.database.read() as connection:
            rows = await connection.execute(sa.select(*COLUMNS).where(condition).order_by(events.c.id).limit(limit))
            return [Event(*row) for row in rows]
