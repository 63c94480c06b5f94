"""Tasks as workers see them: take one for a while, keep it, bring the result.

A claim is a lease with a fencing token (Kleppmann 2016): a worker that was thought dead and comes back holds an old token, and whatever
it wants to write is refused with ``LeaseLost``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import suppress
from dataclasses import dataclass
from time import monotonic
from typing import Any, TypeVar

import sqlalchemy as sa

from api.errors import Busy, LeaseLost
from api.store.bell import Bell
from api.store.database import Database, Transaction
from api.store.events import Events
from api.store.tables import Now, tasks
from api.store.texts import clean
from api.store.transitions import Task, advance, ending, find_place, read_task

T = TypeVar("T")
JUMP = 1.0  # seconds
Also = Callable[[Transaction], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Claim:
    """One worker's right to one task, for ``lease`` seconds from the last renewal."""

    task: Task
    worker: str
    fence: int
    lease: float

    def holds(self) -> sa.ColumnElement[bool]:
        return sa.and_(tasks.c.number == self.task.number, tasks.c.state == "running", tasks.c.fence == self.fence)


class Queue:
    def __init__(self, database: Database, bell: Bell, events: Events, *, max_attempts: int, keep: float | None) -> None:
        self.database, self.bell, self.events = database, bell, events
        self.max_attempts, self.keep = max_attempts, keep
        self.looked = (float("-inf"), 0.0)  # when the database was last asked, by our clock, and its time then
        self.trusting = float("-inf")  # until then, workers have time to renew leases that a jump of the clock has ended

    async def claim(self, worker: str, lease: float) -> Claim | None:
        """The next task, for this worker alone, or ``None``. Owners take turns; an owner's own tasks come in order."""
        overdue = sa.and_(tasks.c.state == "running", tasks.c.lease_until < Now())
        # No lease is that long: the database's clock was set back, and a dead worker's would not run out for as long.
        endless = sa.and_(tasks.c.state == "running", tasks.c.lease_until > Now() + 2 * lease)
        pending = tasks.c.state == "pending"
        asked = monotonic()
        async with self.database.read() as connection:  # idle workers should not take the write lock
            query = sa.select(sa.exists().where(overdue), sa.exists().where(endless), sa.exists().where(pending), Now())
            lost, far, waiting, now = (await connection.execute(query)).one()
        if self.has_jumped(asked, now):
            self.trusting = monotonic() + lease
        if far:
            async with self.database.write() as connection:
                await connection.execute(sa.update(tasks).where(endless).values(lease_until=Now() + lease))
        while lost and monotonic() >= self.trusting and await self.reap(overdue):
            waiting = True
        if not waiting:
            return None
        beginning = asyncio.ensure_future(self.begin(worker, lease))
        try:
            return await asyncio.shield(beginning)
        except asyncio.CancelledError:
            # What was committed nevertheless would be nobody's until the lease has run out.
            with suppress(LeaseLost, Busy):
                if (claim := await beginning) is not None:
                    await self.release(claim)
            raise

    def has_jumped(self, asked: float, now: float) -> bool:
        """Whether the database's clock was set forward since the last look, or this host slept: leases look overdue that are not."""
        before, then = self.looked
        self.looked = asked, now
        return now - then > monotonic() - before + JUMP

    async def next(self, worker: str, lease: float) -> Claim:
        """Waits for a task."""
        if claim := await self.claim(worker, lease):
            return claim
        async with self.events.awake():
            while True:
                count = self.bell.count("tasks")
                if claim := await self.claim(worker, lease):
                    return claim
                await self.bell.wait("tasks", count, self.bell.poll)

    async def renew(self, claim: Claim) -> None:
        """Starts the lease anew. Raises ``LeaseLost``."""
        async with self.database.write() as connection:
            values = {"lease_until": Now() + claim.lease}
            changed = await connection.execute(sa.update(tasks).where(claim.holds()).values(values).returning(tasks.c.number))
            if changed.one_or_none() is None:
                raise LeaseLost()

    async def report(self, claim: Claim, data: Mapping[str, Any]) -> None:
        """Appends a ``progress`` event. Raises ``LeaseLost``."""
        await self.change(claim, "progress", data, {})

    async def finish(self, claim: Claim, result: Mapping[str, Any], also: Also | None = None) -> None:
        """Ends the task with its result, which is its last event's data; ``also`` writes in the same transaction. Raises ``LeaseLost``."""
        await self.change(claim, "finished", result, ending("finished", self.keep, result=result), also)

    async def fail(self, claim: Claim, reason: str) -> None:
        """Ends the task without a result; ``reason`` is for its owner. Raises ``LeaseLost``."""
        reason = clean(reason)
        await self.change(claim, "failed", {"reason": reason}, ending("failed", self.keep, reason=reason))

    async def release(self, claim: Claim) -> None:
        """Gives the task back, at its old place in line and without counting an attempt: the worker leaves. Raises ``LeaseLost``."""
        values = {"state": "pending", "lease_until": None, "fence": tasks.c.fence + 1, "attempts": tasks.c.attempts - 1}
        await self.change(claim, "pending", {"position": 0, "wait": None, "reason": "its worker leaves"}, values)
        self.bell.ring("tasks")

    async def hold(self, claim: Claim, work: Coroutine[Any, Any, T]) -> T:
        """The result of ``work``, with the lease renewed meanwhile. When the task is cancelled, so is ``work``: ``LeaseLost``."""
        working, watching = asyncio.create_task(work), asyncio.create_task(self.watch(claim))
        try:
            await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                watching.result()
            return working.result()
        finally:
            working.cancel()
            watching.cancel()
            await asyncio.gather(working, watching, return_exceptions=True)

    async def watch(self, claim: Claim) -> None:
        """Renews the lease until it is lost; then raises ``LeaseLost`` with what happened.

        An unreachable database is no reason to stop before the lease is over.
        """
        clock = asyncio.get_running_loop().time
        renewed = clock()
        while True:
            try:
                async with self.events.follow(claim.task.id, claim.task.events) as stream:
                    while True:
                        due = renewed + claim.lease / 3
                        for event in await stream.take(max(0.0, due - clock())):
                            if event.kind != "progress":
                                raise LeaseLost(str(event.data.get("reason") or f"the task is {event.kind}"))
                        if (begun := clock()) >= due:
                            await self.renew(claim)
                            renewed = begun
            except Busy:
                if clock() - renewed > claim.lease:
                    raise LeaseLost("the database could not be reached to renew the lease") from None
                await asyncio.sleep(min(1.0, claim.lease / 10))

    async def begin(self, worker: str, lease: float) -> Claim | None:
        async with self.database.write() as connection:
            first = sa.select(tasks.c.number, tasks.c.attempts).where(tasks.c.state == "pending").order_by(tasks.c.turn, tasks.c.number)
            found = (await connection.execute(first.limit(1).with_for_update(skip_locked=True))).one_or_none()
            if found is None:
                return None
            values = {"state": "running", "worker": worker, "lease_until": Now() + lease, "fence": tasks.c.fence + 1}
            values |= {"attempts": found.attempts + 1, "started": Now()}
            data = {"attempt": found.attempts + 1}
            row = await advance(self.database, connection, tasks.c.number == found.number, "started", data, **values)
        self.bell.ring("events")
        return None if row is None else Claim(read_task(row), worker, row.fence, lease)

    async def reap(self, overdue: sa.ColumnElement[bool]) -> bool:
        """Takes one task from a worker that let its lease run out; one that has lost too many workers fails. ``False`` if there is none."""
        async with self.database.write() as connection:
            columns = (tasks.c.number, tasks.c.attempts, tasks.c.kind, tasks.c.turn)
            query = sa.select(*columns).where(overdue).order_by(tasks.c.lease_until).limit(1)
            found = (await connection.execute(query.with_for_update(skip_locked=True))).one_or_none()
            if found is None:
                return False
            data: dict[str, Any]
            values: dict[str, Any]
            if found.attempts >= self.max_attempts:
                reason = f"given up: {found.attempts} workers were lost while they computed it"
                kind, data, values = "failed", {"reason": reason}, ending("failed", self.keep, reason=reason)
            else:
                place = await find_place(connection, found.kind, found.turn, found.number)
                kind, data = "pending", {"position": place.position, "wait": place.wait, "reason": "its worker was lost"}
                values = {"state": "pending", "lease_until": None, "fence": tasks.c.fence + 1}
            await advance(self.database, connection, tasks.c.number == found.number, kind, data, **values)
        self.bell.ring("events")
        return True

    async def change(self, claim: Claim, kind: str, data: Mapping[str, Any], values: Mapping[str, Any], also: Also | None = None) -> None:
        async with self.database.write() as connection:
            if await advance(self.database, connection, claim.holds(), kind, data, **values) is None:
                raise LeaseLost()
            if also is not None:
                await also(connection)
        self.bell.ring("events")
