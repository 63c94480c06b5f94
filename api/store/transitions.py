"""A task's states, and the one way from one to the next: the change and its event in one transaction.

pending → running → finished | failed; running → pending where the worker was lost; pending or running → cancelled.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import sqlalchemy as sa

from api.store.database import Database, Transaction
from api.store.events import append
from api.store.tables import Now, Row, tasks

State = Literal["pending", "running", "finished", "cancelled", "failed"]


@dataclass(frozen=True, slots=True)
class Task:
    """``events`` is the number of its newest event, ``attempts`` how often a worker began it; times are Unix seconds."""

    id: str
    owner: str
    kind: str
    params: Mapping[str, Any]
    state: State
    events: int
    attempts: int
    number: int
    turn: int
    reason: str | None
    result: Mapping[str, Any] | None
    created: float
    started: float | None
    ended: float | None


@dataclass(frozen=True, slots=True)
class Place:
    """How many tasks are to be begun before this one, and for how many seconds that may take, if that can be told."""

    position: int
    wait: float | None


COLUMNS = tuple(tasks.c[name] for name in Task.__slots__)


def read_task(row: Row) -> Task:
    return Task(**{name: getattr(row, name) for name in Task.__slots__})


async def advance(
    database: Database, connection: Transaction, where: sa.ColumnElement[bool], kind: str, data: Mapping[str, Any], **values: Any
) -> Row | None:
    """Changes the one task that ``where`` describes and appends the event; ``None`` where it is in another state by now."""
    changed = sa.update(tasks).where(where).values(events=tasks.c.events + 1, **values).returning(*COLUMNS, tasks.c.fence)
    row = (await connection.execute(changed)).one_or_none()
    if row is not None:
        await append(database, connection, row, kind, data)
    return row


def ending(state: State, keep: float | None, **values: Any) -> dict[str, Any]:
    """The columns of a task that ends; it is swept after ``keep`` seconds. A new fence shuts out the worker that held it."""
    expires = None if keep is None else Now() + keep
    return {"state": state, "ended": Now(), "expires": expires, "lease_until": None, "fence": tasks.c.fence + 1, **values}


async def find_place(connection: Transaction, kind: str, turn: int, number: int) -> Place:
    pending = tasks.c.state == "pending"
    before = sa.or_(tasks.c.turn < turn, sa.and_(tasks.c.turn == turn, tasks.c.number < number))
    recent = (
        sa.select((tasks.c.ended - tasks.c.started).label("seconds"))
        .where(tasks.c.kind == kind, tasks.c.state == "finished")
        .order_by(tasks.c.ended.desc())
        .limit(20)
        .subquery()
    )
    position, running, mean = (
        await connection.execute(
            sa.select(
                sa.select(sa.func.count()).select_from(tasks).where(pending, before).scalar_subquery(),
                sa.select(sa.func.count()).select_from(tasks).where(tasks.c.state == "running").scalar_subquery(),
                sa.select(sa.func.avg(recent.c.seconds)).scalar_subquery(),
            )
        )
    ).one()
    busy = running > 0 or position > 0
    return Place(position, None if mean is None else float(mean) * (position + busy) / max(1, running))
