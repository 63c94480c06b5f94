"""Sessions and collections: what pictures are gathered in; and what these have in common with tags."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from api.errors import Conflict, NoSuchCollection, NoSuchImage, NoSuchSession, NotFound
from api.store.database import Database, Transaction
from api.store.tables import Now, collections, image_collections, images, sessions
from api.store.tasks import ID
from api.store.texts import check_title


@dataclass(frozen=True, slots=True)
class Group:
    """A session or a collection with the number of its pictures; ``number`` pages through an owner's."""

    id: str
    number: int
    name: str
    created: float
    images: int


class Groups:
    """What sessions and collections have in common."""

    table: ClassVar[sa.Table]
    missing: ClassVar[type[NotFound]]

    def __init__(self, database: Database) -> None:
        self.database = database

    def count(self) -> sa.ScalarSelect[int]:
        raise NotImplementedError

    async def create(self, owner: str, name: str) -> Group:
        """Raises ``BadInput``, and ``Conflict`` where a collection is called so already."""
        values = {"id": secrets.token_hex(16), "owner": owner, "name": check_title(name), "created": Now()}
        table = self.table
        try:
            async with self.database.write() as connection:
                query = sa.insert(table).values(values).returning(table.c.id, table.c.number, table.c.name, table.c.created)
                group_id, number, title, created = (await connection.execute(query)).one()
                return Group(group_id, number, title, created, 0)
        except IntegrityError:
            raise Conflict(f"the name {name[:80]!r} is taken") from None

    async def get(self, group_id: str, owner: str) -> Group:
        """Raises the table's "no such"."""
        async with self.database.read() as connection:
            row = (await connection.execute(self.select().where(*self.mine(group_id, owner)))).one_or_none()
        if row is None:
            raise self.missing(group_id[:64])
        return Group(*row)

    async def page(self, owner: str, before: int | None = None, limit: int = 50) -> list[Group]:
        """An owner's, newest first; ``before`` is the ``number`` of the last one of the page before."""
        query = self.select().where(self.table.c.owner == owner).order_by(self.table.c.number.desc()).limit(limit)
        if before is not None:
            query = query.where(self.table.c.number < before)
        async with self.database.read() as connection:
            return [Group(*row) for row in await connection.execute(query)]

    async def rename(self, group_id: str, owner: str, name: str) -> None:
        query = sa.update(self.table).where(*self.mine(group_id, owner)).values(name=check_title(name)).returning(self.table.c.number)
        try:
            async with self.database.write() as connection:
                await self.database.order(connection)  # whoever has just found it is about to refer to it
                if (await connection.execute(query)).one_or_none() is None:
                    raise self.missing(group_id[:64])
        except IntegrityError:
            raise Conflict(f"the name {name[:80]!r} is taken") from None

    async def delete(self, group_id: str, owner: str) -> None:
        """The pictures stay."""
        query = sa.delete(self.table).where(*self.mine(group_id, owner)).returning(self.table.c.number)
        async with self.database.write() as connection:
            await self.database.order(connection)
            if (await connection.execute(query)).one_or_none() is None:
                raise self.missing(group_id[:64])

    def select(self) -> sa.Select[str, int, str, float, int]:
        table = self.table
        return sa.select(table.c.id, table.c.number, table.c.name, table.c.created, self.count())

    def mine(self, group_id: str, owner: str) -> tuple[sa.ColumnElement[bool], ...]:
        if not ID.fullmatch(group_id):
            raise self.missing(group_id[:64])
        return self.table.c.id == group_id, self.table.c.owner == owner


class Sessions(Groups):
    table, missing = sessions, NoSuchSession

    def count(self) -> sa.ScalarSelect[int]:
        return sa.select(sa.func.count()).where(images.c.session == sessions.c.number).scalar_subquery()

    async def enter(self, connection: Transaction, owner: str, text: str) -> str:
        """The id of the session that ``text`` is the id of, or the name of; made where there is none. Raises ``BadInput``."""
        name = check_title(text)
        same = sa.and_(sessions.c.owner == owner, sa.or_(sessions.c.id == name, sessions.c.name == name))
        query = sa.select(sessions.c.id).where(same).order_by(sessions.c.number.desc()).limit(1)
        if (found := await connection.scalar(query)) is not None:
            return str(found)
        values = {"id": secrets.token_hex(16), "owner": owner, "name": name, "created": Now()}
        return str(await connection.scalar(sa.insert(sessions).values(values).returning(sessions.c.id)))


class Collections(Groups):
    table, missing = collections, NoSuchCollection

    def count(self) -> sa.ScalarSelect[int]:
        return sa.select(sa.func.count()).where(image_collections.c.collection == collections.c.number).scalar_subquery()

    async def change(self, collection_id: str, owner: str, add: Sequence[str] = (), remove: Sequence[str] = ()) -> None:
        """Adds pictures, of which those that are in it already stay, and takes others out. Raises ``NoSuchCollection``, ``NoSuchImage``."""
        async with self.database.write() as connection:
            await self.database.order(connection)
            number = await connection.scalar(sa.select(collections.c.number).where(*self.mine(collection_id, owner)))
            if number is None:
                raise NoSuchCollection(collection_id)
            more, less = await find_images(connection, owner, add), await find_images(connection, owner, remove)
            await link_images(connection, image_collections, "collection", [number], more)
            rows = sa.and_(image_collections.c.collection == number, image_collections.c.image.in_(less))
            await connection.execute(sa.delete(image_collections).where(rows))


async def find_images(connection: Transaction, owner: str, image_ids: Sequence[str]) -> list[int]:
    """The pictures' numbers in the same order. Raises ``NoSuchImage``, also for another owner's."""
    for image_id in image_ids:
        if not ID.fullmatch(image_id):
            raise NoSuchImage(image_id[:64])
    query = sa.select(images.c.id, images.c.number).where(images.c.id.in_(set(image_ids)), images.c.owner == owner)
    found = {row.id: row.number for row in await connection.execute(query)}
    for image_id in image_ids:
        if image_id not in found:
            raise NoSuchImage(image_id)
    return [found[image_id] for image_id in image_ids]


async def name_rows(connection: Transaction, table: sa.Table, of: str, names: Sequence[str]) -> list[int]:
    """The numbers of named rows, which are made where they are missing; call ``Database.order`` before.

    ``of`` is what the names belong to: an owner, or a model.
    """
    column = table.c[1]
    query = sa.select(table.c.name, table.c.number).where(column == of, table.c.name.in_(names))
    found = {row.name: row.number for row in await connection.execute(query)}
    if new := [{column.name: of, "name": name} for name in dict.fromkeys(names) if name not in found]:
        await connection.execute(sa.insert(table), new)
        found = {row.name: row.number for row in await connection.execute(query)}
    return [found[name] for name in dict.fromkeys(names)]


async def link_images(connection: Transaction, table: sa.Table, first: str, numbers: Sequence[int], image_numbers: Sequence[int]) -> None:
    """Every row with every picture; links that exist stay."""
    query = sa.select(table.c[first], table.c.image).where(table.c[first].in_(numbers), table.c.image.in_(image_numbers))
    there = {(row[0], row[1]) for row in await connection.execute(query)}
    wanted = dict.fromkeys((number, image) for number in numbers for image in image_numbers)
    if new := [{first: number, "image": image} for number, image in wanted if (number, image) not in there]:
        await connection.execute(sa.insert(table), new)


async def prune(connection: Transaction, table: sa.Table, links: sa.Table, first: str, numbers: Sequence[int]) -> None:
    """Deletes those of the rows that no picture has any more."""
    used = sa.exists().where(links.c[first] == table.c.number)
    await connection.execute(sa.delete(table).where(table.c.number.in_(numbers), ~used))
