"""Tags: words that an owner gives to pictures."""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from api.errors import Conflict, NoSuchTag
from api.store.database import Database
from api.store.groups import find_images, link_images, name_rows, prune
from api.store.tables import image_tags, tags
from api.store.texts import check_tag


class Tags:
    """Tags are made by their first use and gone after their last."""

    def __init__(self, database: Database) -> None:
        self.database = database

    async def of_owner(self, owner: str) -> list[tuple[str, int]]:
        """All tags with the number of their pictures, by name."""
        count = sa.select(sa.func.count()).where(image_tags.c.tag == tags.c.number).scalar_subquery()
        async with self.database.read() as connection:
            rows = await connection.execute(sa.select(tags.c.name, count).where(tags.c.owner == owner).order_by(tags.c.name))
            return [(row[0], row[1]) for row in rows]

    async def put(self, image_id: str, owner: str, names: Sequence[str]) -> None:
        """Adds tags to a picture. Raises ``BadInput``, ``NoSuchImage``."""
        async with self.database.write() as connection:
            await self.database.order(connection)
            numbers = await find_images(connection, owner, [image_id])
            await link_images(connection, image_tags, "tag", await name_rows(connection, tags, owner, list(map(check_tag, names))), numbers)

    async def remove(self, image_id: str, owner: str, name: str) -> None:
        """Takes a tag from a picture. Raises ``NoSuchImage``, and ``NoSuchTag`` where it has no such tag."""
        async with self.database.write() as connection:
            await self.database.order(connection)
            numbers = await find_images(connection, owner, [image_id])
            tag = sa.select(tags.c.number).where(tags.c.owner == owner, tags.c.name == check_tag(name)).scalar_subquery()
            rows = sa.delete(image_tags).where(image_tags.c.tag == tag, image_tags.c.image.in_(numbers)).returning(image_tags.c.tag)
            gone = (await connection.execute(rows)).scalar_one_or_none()
            if gone is None:
                raise NoSuchTag(name[:64])
            await prune(connection, tags, image_tags, "tag", [gone])

    async def replace(self, image_id: str, owner: str, names: Sequence[str]) -> None:
        """Makes these the picture's only tags. Raises ``BadInput``, ``NoSuchImage``."""
        wanted = list(dict.fromkeys(map(check_tag, names)))
        async with self.database.write() as connection:
            await self.database.order(connection)
            (number,) = await find_images(connection, owner, [image_id])
            kept = sa.select(tags.c.number).where(tags.c.owner == owner, tags.c.name.in_(wanted))
            gone = sa.delete(image_tags).where(image_tags.c.image == number, image_tags.c.tag.not_in(kept)).returning(image_tags.c.tag)
            await prune(connection, tags, image_tags, "tag", (await connection.execute(gone)).scalars().all())
            await link_images(connection, image_tags, "tag", await name_rows(connection, tags, owner, wanted), [number])

    async def change(self, name: str, owner: str, add: Sequence[str], remove: Sequence[str]) -> None:
        """Gives pictures the tag, and takes it from others. Raises ``BadInput``, ``NoSuchImage``."""
        form = check_tag(name)
        async with self.database.write() as connection:
            await self.database.order(connection)
            more, less = await find_images(connection, owner, add), await find_images(connection, owner, remove)
            if more:
                await link_images(connection, image_tags, "tag", await name_rows(connection, tags, owner, [form]), more)
            mine = sa.select(tags.c.number).where(tags.c.owner == owner, tags.c.name == form)
            gone = sa.delete(image_tags).where(image_tags.c.tag.in_(mine), image_tags.c.image.in_(less)).returning(image_tags.c.tag)
            await prune(connection, tags, image_tags, "tag", (await connection.execute(gone)).scalars().all())

    async def rename(self, name: str, owner: str, new: str) -> None:
        """Raises ``BadInput``, ``NoSuchTag``, and ``Conflict`` where there is a tag of the new name."""
        form = check_tag(new)
        update = sa.update(tags).where(tags.c.owner == owner, tags.c.name == check_tag(name)).values(name=form)
        try:
            async with self.database.write() as connection:
                await self.database.order(connection)
                if (await connection.execute(update.returning(tags.c.number))).one_or_none() is None:
                    raise NoSuchTag(name[:64])
        except IntegrityError:
            raise Conflict(f"there is a tag {form!r} already") from None

    async def delete(self, name: str, owner: str) -> None:
        """Takes the tag from all pictures. Raises ``NoSuchTag``."""
        gone = sa.delete(tags).where(tags.c.owner == owner, tags.c.name == check_tag(name)).returning(tags.c.number)
        async with self.database.write() as connection:
            await self.database.order(connection)
            if (await connection.execute(gone)).one_or_none() is None:
                raise NoSuchTag(name[:64])

    async def of_images(self, numbers: Sequence[int]) -> dict[int, list[str]]:
        """The tags of each picture, by name."""
        query = sa.select(image_tags.c.image, tags.c.name).join(tags, tags.c.number == image_tags.c.tag)
        found: dict[int, list[str]] = {number: [] for number in numbers}
        async with self.database.read() as connection:
            for row in await connection.execute(query.where(image_tags.c.image.in_(numbers)).order_by(tags.c.name)):
                found[row.image].append(row.name)
        return found
