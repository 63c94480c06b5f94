"""Tasks as their owners see them: make, look up, cancel."""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from collections.abc import Collection, Mapping
from typing import Any

import sqlalchemy as sa

from api.errors import BadInput, Busy, Conflict, NoSuchBlob, NoSuchTask
from api.store.bell import Bell
from api.store.database import Database, Transaction
from api.store.events import append
from api.store.tables import Now, blobs, task_blobs, tasks
from api.store.texts import clean
from api.store.transitions import COLUMNS, Place, Task, advance, ending, find_place, read_task

ID = re.compile(r"[0-9a-f]{32}", re.ASCII)
KEY = re.compile(r"[\x20-\x7e]{1,255}")


class Tasks:
    def __init__(self, database: Database, bell: Bell, *, max_pending: int, keep: float | None) -> None:
        self.database, self.bell = database, bell
        self.max_pending, self.keep = max_pending, keep

    async def create(
        self, owner: str, kind: str, params: Mapping[str, Any], idempotency_key: str | None = None, blob_ids: Collection[str] = ()
    ) -> Task:
        """Stores a pending task before its id is known to anybody; ``params`` is what JSON can hold, and should contain the seed.

        ``blob_ids`` are kept until it has ended. The same ``idempotency_key`` of the same owner gives the same task again. Raises
        ``Conflict`` where that task has other parameters, ``BadInput``, ``NoSuchBlob``, and ``Busy`` where too many tasks wait.
        """
        check_key(idempotency_key)
        digest = fingerprint(kind, params)
        async with self.database.write() as connection:
            await self.database.order(connection)
            if idempotency_key is not None and (task := await find_same(connection, owner, idempotency_key, digest)):
                return task
            turn = await self.draw_turn(connection, owner)
            values: dict[str, Any] = {
                "id": secrets.token_hex(16),
                "owner": owner,
                "kind": kind,
                "params": params,
                "idempotency_key": idempotency_key,
            }
            values |= {"fingerprint": digest, "state": "pending", "turn": turn, "events": 1, "created": Now()}
            row = (await connection.execute(sa.insert(tasks).values(values).returning(*COLUMNS))).one()
            await hold(connection, row.number, set(blob_ids))
            place = await find_place(connection, kind, turn, row.number)
            await append(self.database, connection, row, "pending", {"position": place.position, "wait": place.wait})
        self.bell.ring("tasks")
        self.bell.ring("events")
        return read_task(row)

    async def get(self, task_id: str, owner: str | None = None) -> Task:
        """Raises ``NoSuchTask``, also for another owner's; ``owner`` ``None`` may see all."""
        async with self.database.read() as connection:
            return await find(connection, task_id, owner)

    async def of_owner(self, owner: str, before: int | None = None, limit: int = 50) -> list[Task]:
        """An owner's tasks, newest first; ``before`` is the ``number`` of the last one of the page before."""
        query = sa.select(*COLUMNS).where(tasks.c.owner == owner).order_by(tasks.c.number.desc()).limit(limit)
        if before is not None:
            query = query.where(tasks.c.number < before)
        async with self.database.read() as connection:
            return [read_task(row) for row in await connection.execute(query)]

    async def place(self, task: Task) -> Place:
        """Where a pending task stands in the queue now."""
        async with self.database.read() as connection:
            return await find_place(connection, task.kind, task.turn, task.number)

    async def cancel(self, task_id: str, owner: str | None = None, reason: str = "cancelled on request") -> Task:
        """Ends a pending or running task at once; its worker loses the lease and so hears of it. An ended task stays as it is.

        Raises ``NoSuchTask``.
        """
        async with self.database.write() as connection:
            task = await find(connection, task_id, owner)
            mine = sa.and_(tasks.c.id == task_id, tasks.c.state.in_(("pending", "running")))
            reason = clean(reason)
            values = ending("cancelled", self.keep, reason=reason)
            row = await advance(self.database, connection, mine, "cancelled", {"reason": reason}, **values)
            task = read_task(row) if row is not None else await find(connection, task.id, owner)
        self.bell.ring("events")
        return task

    async def sweep(self, limit: int = 100) -> int:
        """Deletes up to ``limit`` tasks that ended long enough ago, with their events; tells how many."""
        old = sa.select(tasks.c.number).where(tasks.c.expires < Now()).order_by(tasks.c.expires).limit(limit)
        async with self.database.write() as connection:
            numbers = await connection.scalars(old.with_for_update(skip_locked=True))
            await connection.execute(sa.delete(tasks).where(tasks.c.number.in_(numbers)))
        return len(numbers)

    async def draw_turn(self, connection: Transaction, owner: str) -> int:
        """Where in line a new task stands: behind its owner's others, beside everybody else's next.

        Start-time fair queueing (Goyal, Vin, Cheng 1996) with all costs 1: a task starts at the later of the current virtual time and
        the end of its owner's task before; the smallest start is served first.
        """
        waiting = sa.select(sa.func.count(), sa.func.min(tasks.c.turn)).where(tasks.c.state == "pending")
        number, now = (await connection.execute(waiting)).one()
        if number >= self.max_pending:
            raise Busy(f"{number} tasks are waiting already; try again later", retry_after=10.0)
        mine = sa.select(sa.func.max(tasks.c.turn)).where(tasks.c.owner == owner, tasks.c.state == "pending")
        last = await connection.scalar(mine)
        return max(now or 0, 0 if last is None else last + 1)


async def hold(connection: Transaction, number: int, blob_ids: Collection[str]) -> None:
    """Notes what a task is made from. Raises ``NoSuchBlob``."""
    for blob_id in sorted(blob_ids):  # whoever locks several does so in one order
        known = sa.select(sa.literal(number), blobs.c.id).where(blobs.c.id == blob_id)
        added = await connection.execute(sa.insert(task_blobs).from_select(["task", "blob_id"], known).returning(task_blobs.c.blob_id))
        if added.one_or_none() is None:
            raise NoSuchBlob(blob_id[:64])


async def find(connection: Transaction, task_id: str, owner: str | None) -> Task:
    if not ID.fullmatch(task_id):
        raise NoSuchTask(task_id[:64])
    row = (await connection.execute(sa.select(*COLUMNS).where(tasks.c.id == task_id))).one_or_none()
    if row is None or (owner is not None and row.owner != owner):
        raise NoSuchTask(task_id)
    return read_task(row)


async def find_same(connection: Transaction, owner: str, key: str, digest: str) -> Task | None:
    query = sa.select(*COLUMNS, tasks.c.fingerprint).where(tasks.c.owner == owner, tasks.c.idempotency_key == key)
    row = (await connection.execute(query)).one_or_none()
    if row is not None and row.fingerprint != digest:
        raise Conflict(f"the idempotency key {key!r} was used for a task with other parameters; use a new key")
    return None if row is None else read_task(row)


def check_key(key: str | None) -> None:
    if key is not None and not KEY.fullmatch(key):
        raise BadInput(f"found the idempotency key {key[:80]!r}; use 1 to 255 printable ASCII characters")


def fingerprint(kind: str, params: Mapping[str, Any]) -> str:
    try:
        text = json.dumps([kind, params], sort_keys=True, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise BadInput(f"the task's parameters cannot be stored as JSON: {error}") from None
    return hashlib.sha256(text.encode()).hexdigest()
