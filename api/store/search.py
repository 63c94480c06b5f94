"""Pages of pictures by any combination of filters, newest first, in time that does not grow with the number of pictures.

Each filter has an index that lists its pictures in their order. Going along the one with the fewest pictures, a page is full soon:
either it has few, or the others let many of its pictures through. (Two filters with many pictures each and none in common are the
exception.)
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY

from api.store.database import Transaction
from api.store.tables import (
    Row,
    blobs,
    collections,
    image_collections,
    image_tags,
    image_words,
    images,
    sessions,
    tags,
    words,
)
from api.store.texts import check_tag, clean, split_words

SOURCE = images.join(blobs, images.c.blob_id == blobs.c.id).outerjoin(sessions, images.c.session == sessions.c.number)
FEW, MANY = 500, 4000
"""Numbers in the first and in the largest step along an index."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Query:
    """All that is given must hold. ``text``: words that the prompt contains, in any order; ``since`` ≤ time < ``until`` in Unix seconds."""

    model: str | None = None
    label: str | None = None
    tags: Sequence[str] = ()
    collection_id: str | None = None
    session_id: str | None = None
    text: str | None = None
    since: float | None = None
    until: float | None = None
    starred: bool | None = None


@dataclass(frozen=True, slots=True)
class Filter:
    """The pictures ``number`` of all rows ``where``; an index has them in order, unless only ``checks``."""

    number: sa.ColumnElement[int]
    where: sa.ColumnElement[bool]
    checks: bool = False


async def search(
    connection: Transaction, columns: Sequence[sa.ColumnElement[Any]], owner: str, query: Query, before: int | None, limit: int
) -> Sequence[Row]:
    """Rows of ``SOURCE``. Raises ``BadInput`` for a tag that cannot exist."""
    filters = await find_filters(connection, owner, query)
    bounds = await find_bounds(connection, owner, query, before)
    if filters is None or bounds is None:
        return []
    numbers = await walk(connection, filters, *bounds, limit)
    rows = sa.select(*columns).select_from(SOURCE).where(images.c.number.in_(numbers)).order_by(images.c.number.desc())
    return (await connection.execute(rows)).all()


async def walk(connection: Transaction, filters: Sequence[Filter], low: int, high: int | None, limit: int) -> list[int]:
    """The ``limit`` greatest numbers, low ≤ number < high, that all filters let through.

    It goes along the filter that lets the fewest through, as far as a look at each can tell, and asks the others about those. Each
    question is answered from one index: which of them is best in a join, planners without fresh statistics guess badly.
    """
    size = limit if len(filters) == 1 else FEW
    looks = [(await look(connection, each, low, high, size), each) for each in filters if not each.checks]
    looks.sort(key=lambda found: (len(found[0]) == size, found[0][-1] if len(found[0]) == size else len(found[0])))
    numbers, sparse = looks[0]
    others = [each for _, each in looks[1:]] + [each for each in filters if each.checks]
    passed: list[int] = []
    while numbers:
        rest: Sequence[int] = numbers
        for each in others:
            rest = await check(connection, each, rest)
        passed += rest
        if len(passed) >= limit or len(numbers) < size:
            break
        size = min(2 * size, MANY)
        numbers = await look(connection, sparse, low, numbers[-1], size)
    return passed[:limit]


async def look(connection: Transaction, each: Filter, low: int, high: int | None, size: int) -> Sequence[int]:
    query = sa.select(each.number).where(each.where, each.number >= low).order_by(each.number.desc()).limit(size)
    return await connection.scalars(query if high is None else query.where(each.number < high))


async def check(connection: Transaction, each: Filter, numbers: Sequence[int]) -> Sequence[int]:
    """Those of the numbers that the filter lets through, in the same order."""
    if not numbers:
        return numbers
    through = set(await connection.scalars(sa.select(each.number).where(each.where, among(connection, each.number, numbers))))
    return [number for number in numbers if number in through]


def among(connection: Transaction, column: sa.ColumnElement[int], numbers: Sequence[int]) -> sa.ColumnElement[bool]:
    """``column.in_(numbers)`` with one parameter: thousands of them take longer to pass than to look up."""
    if connection.connection.dialect.name == "sqlite":
        listed = sa.func.json_each(json.dumps(list(numbers)), type_=sa.Text).table_valued("value")
        return column.in_(sa.select(listed.c.value))
    return column == sa.any_(sa.cast(list(numbers), ARRAY(sa.BigInteger)))


async def find_bounds(connection: Transaction, owner: str, query: Query, before: int | None) -> tuple[int, int | None] | None:
    """The numbers that can be meant, low ≤ number < high; numbers grow with time. ``None`` if there are none."""
    low, high = 0, before
    mine = sa.select(images.c.number).where(images.c.owner == owner).limit(1)
    if query.since is not None:
        low = await connection.scalar(mine.where(images.c.created >= query.since).order_by(images.c.created, images.c.number))
    if query.until is not None:
        last = await connection.scalar(mine.where(images.c.created < query.until).order_by(images.c.created.desc(), images.c.number.desc()))
        high = 0 if last is None else last + 1 if before is None else min(before, last + 1)
    return None if low is None or high == 0 else (low, high)


async def find_filters(connection: Transaction, owner: str, query: Query) -> list[Filter] | None:
    """``None`` where something named does not exist."""
    mine = images.c.owner == owner
    plain = ((images.c.model, query.model), (images.c.label, query.label))
    found = [Filter(images.c.number, sa.and_(mine, column == clean(value))) for column, value in plain if value is not None]
    if query.starred is not None:
        found.append(Filter(images.c.number, sa.and_(mine, images.c.starred == query.starred)))
    for table, first, column, value in name_filters(query):
        row = await connection.scalar(sa.select(table.c.number).where(table.c.owner == owner, column == clean(value)))
        if row is None:
            return None
        found.append(Filter(first.table.c.number if first.table is images else first.table.c.image, first == row))
    found = found or [Filter(images.c.number, mine)]
    if query.since is not None:
        found.append(Filter(images.c.number, images.c.created >= query.since, checks=True))
    if query.until is not None:
        found.append(Filter(images.c.number, images.c.created < query.until, checks=True))
    return found


def name_filters(query: Query) -> Iterator[tuple[sa.Table, sa.Column[Any], sa.Column[str], str]]:
    """A table of names, the column that refers to it, and the column and value to look for in it."""
    if query.session_id is not None:
        yield sessions, images.c.session, sessions.c.id, query.session_id
    if query.collection_id is not None:
        yield collections, image_collections.c.collection, collections.c.id, query.collection_id
    for tag in dict.fromkeys(map(check_tag, query.tags)):
        yield tags, image_tags.c.tag, tags.c.name, tag
    for word in split_words(query.text or ""):
        yield words, image_words.c.word, words.c.name, word
