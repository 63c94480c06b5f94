"""Deleted pictures, which come back when asked for in time.

A deleted picture's row stays, with another owner, so that no search, list or count meets it; what it belonged to is noted beside.
"""

from __future__ import annotations

import contextlib

import sqlalchemy as sa

from api.errors import NoSuchImage
from api.store.belongings import describe, undescribe
from api.store.database import Database, Transaction
from api.store.groups import link_images
from api.store.images import Images, find, select
from api.store.tables import Now, Row, collections, image_collections, image_tags, images, sessions, tags
from api.store.tasks import ID

MARK = "deleted:"
"""Before the owner's name."""


class Trash:
    def __init__(self, database: Database, of_images: Images) -> None:
        self.database, self.images = database, of_images

    async def put(self, image_id: str, owner: str) -> None:
        """Deletes a picture until ``restore`` or ``sweep``. Raises ``NoSuchImage``."""
        async with self.database.write() as connection:
            await self.database.order(connection)
            image = await find(connection, image_id, owner)
            tagged, gathered = image_tags.c.tag == tags.c.number, image_collections.c.collection == collections.c.number
            links = {
                "session": image.session_id,
                "tags": await select(connection, tags.c.name, tagged, image_tags.c.image == image.number),
                "collections": await select(connection, collections.c.id, gathered, image_collections.c.image == image.number),
            }
            await undescribe(connection, image.number)
            await connection.execute(sa.delete(image_collections).where(image_collections.c.image == image.number))
            values = {"owner": MARK + owner, "session": None, "deleted": Now(), "links": links}
            await connection.execute(sa.update(images).where(images.c.number == image.number).values(values))

    async def restore(self, image_id: str, owner: str) -> None:
        """Brings a deleted picture back to where it was, as far as that is still there. Raises ``NoSuchImage``."""
        async with self.database.write() as connection:
            await self.database.order(connection)
            columns = (images.c.number, images.c.prompt, images.c.links)
            query = sa.select(*columns).where(images.c.id == image_id, images.c.owner == MARK + owner)
            row = (await connection.execute(query)).one_or_none() if ID.fullmatch(image_id) else None
            if row is None:
                raise NoSuchImage(image_id[:64])
            await revive(connection, owner, row)

    async def sweep(self, age: float, limit: int = 100) -> int:
        """Deletes up to ``limit`` pictures for good that were deleted more than ``age`` seconds ago; tells how many."""
        old = sa.select(images.c.id, images.c.owner).where(images.c.deleted < Now() - age).order_by(images.c.deleted).limit(limit)
        async with self.database.read() as connection:
            rows = (await connection.execute(old)).all()
        for row in rows:
            with contextlib.suppress(NoSuchImage):  # restored meanwhile, or swept by another worker
                await self.images.delete(row.id, row.owner)
        return len(rows)


async def revive(connection: Transaction, owner: str, row: Row) -> None:
    session = sa.select(sessions.c.number).where(sessions.c.id == row.links["session"], sessions.c.owner == owner)
    values = {"owner": owner, "session": await connection.scalar(session), "deleted": None, "links": None}
    await connection.execute(sa.update(images).where(images.c.number == row.number).values(values))
    await describe(connection, owner, row.number, row.links["tags"], row.prompt)
    there = sa.select(collections.c.number).where(collections.c.id.in_(row.links["collections"]), collections.c.owner == owner)
    await link_images(connection, image_collections, "collection", await connection.scalars(there), [row.number])
