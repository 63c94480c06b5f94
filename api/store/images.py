"""Every picture made, with its recipe and where it comes from."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from api.errors import NoSuchImage, NoSuchSession
from api.store.belongings import describe, drop_blobs, keep_blobs, undescribe
from api.store.blobs import Blobs
from api.store.database import Database, Transaction
from api.store.groups import find_images, link_images, name_rows
from api.store.search import SOURCE, Query, search
from api.store.tables import (
    Now,
    Row,
    blobs,
    collections,
    directions,
    image_collections,
    image_directions,
    image_inputs,
    image_parents,
    image_tags,
    images,
    sessions,
    tags,
)
from api.store.tasks import ID
from api.store.texts import clean


@dataclass(frozen=True, kw_only=True, slots=True)
class Made:
    """A picture to be recorded. ``blob_id`` and ``thumbnail_id`` are blobs of ``owner``, which from then on do not expire.

    ``recipe`` is what its file tells of it, ``job`` all that makes the same picture again, together with ``inputs``: blobs by the names
    that the job has for them. ``parents`` are the ids of the pictures it was edited from; ``directions`` has a multiplier for each
    direction's name.
    """

    owner: str
    kind: str
    model: str
    width: int
    height: int
    recipe: Mapping[str, Any]
    blob_id: str
    thumbnail_id: str | None = None
    label: str | None = None
    prompt: str | None = None
    seed: int | None = None
    session_id: str | None = None
    task_id: str | None = None
    parents: Sequence[str] = ()
    directions: Mapping[str, float] = field(default_factory=dict)
    tags: Sequence[str] = ()
    job: Mapping[str, Any] | None = None
    inputs: Mapping[str, str] = field(default_factory=dict)
    id: str = field(default_factory=lambda: secrets.token_hex(16))


@dataclass(frozen=True, slots=True)
class Image:
    """A recorded picture; ``number`` grows with time and pages through lists; ``created`` is Unix seconds; ``mime_type`` is the blob's."""

    id: str
    number: int
    owner: str
    kind: str
    model: str
    label: str | None
    prompt: str | None
    seed: int | None
    width: int
    height: int
    recipe: Mapping[str, Any]
    blob_id: str
    thumbnail_id: str | None
    task_id: str | None
    created: float
    starred: bool
    note: str | None
    session_id: str | None
    mime_type: str


@dataclass(frozen=True, slots=True)
class Relations:
    """Ids of the pictures it was made from and that were made from it; ids of its collections; names of tags and directions."""

    parents: list[str]
    children: list[str]
    collections: list[str]
    tags: list[str]
    directions: dict[str, float]


PLAIN = ("id", "owner", "kind", "seed", "width", "height", "recipe", "job", "blob_id", "thumbnail_id", "task_id")
COLUMNS = (
    *(images.c[name] for name in Image.__slots__ if name not in ("session_id", "mime_type")),
    sessions.c.id.label("session_id"),
    blobs.c.type.label("mime_type"),
)


class Images:
    def __init__(self, database: Database, of_blobs: Blobs) -> None:
        self.database, self.blobs = database, of_blobs

    async def add(self, made: Made) -> Image:
        """Raises ``NoSuchBlob``, ``NoSuchSession``, ``NoSuchImage`` (a parent), ``BadInput`` (a tag)."""
        async with self.database.write() as connection:
            await self.insert(connection, made)
            return await find(connection, made.id, made.owner)

    async def insert(self, connection: Transaction, made: Made) -> None:
        """``add`` within a transaction, such as the one that finishes the task."""
        await self.database.order(connection)
        session = await find_session(connection, made)
        parents = await find_images(connection, made.owner, made.parents)
        await keep_blobs(connection, made)
        values = {name: getattr(made, name) for name in PLAIN}
        values |= {name: None if (text := getattr(made, name)) is None else clean(text) for name in ("model", "label", "prompt")}
        values |= {"session": session, "created": Now()}
        number = await connection.scalar(sa.insert(images).values(values).returning(images.c.number))
        await link_images(connection, image_parents, "parent", parents, [number])
        if made.inputs:
            rows = [{"image": number, "name": name, "blob_id": blob_id} for name, blob_id in made.inputs.items()]
            await connection.execute(sa.insert(image_inputs), rows)
        await self.move(connection, made, number)
        await describe(connection, made.owner, number, made.tags, made.prompt)

    async def move(self, connection: Transaction, made: Made, number: int) -> None:
        """The rows of directions."""
        if made.directions:
            names = {clean(name): value for name, value in made.directions.items()}
            numbers = await name_rows(connection, directions, clean(made.model), list(names))
            rows = [{"direction": n, "image": number, "multiplier": value} for n, value in zip(numbers, names.values(), strict=True)]
            await connection.execute(sa.insert(image_directions), rows)

    async def get(self, image_id: str, owner: str | None = None) -> Image:
        """Raises ``NoSuchImage``, also for another owner's; ``owner`` ``None`` may see all."""
        async with self.database.read() as connection:
            return await find(connection, image_id, owner)

    async def relations(self, image: Image) -> Relations:
        parent, child = image_parents.c.parent, image_parents.c.image
        gathered = image_collections.c.collection == collections.c.number
        tagged, moved = image_tags.c.tag == tags.c.number, image_directions.c.direction == directions.c.number
        pairs = sa.select(directions.c.name, image_directions.c.multiplier).where(moved, image_directions.c.image == image.number)
        mine = images.c.owner == image.owner  # the deleted belong to nobody for a while
        async with self.database.read() as connection:
            return Relations(
                await select(connection, images.c.id, mine, parent == images.c.number, child == image.number),
                await select(connection, images.c.id, mine, child == images.c.number, parent == image.number),
                await select(connection, collections.c.id, gathered, image_collections.c.image == image.number),
                await select(connection, tags.c.name, tagged, image_tags.c.image == image.number),
                {row.name: row.multiplier for row in await connection.execute(pairs)},
            )

    async def job(self, image: Image) -> tuple[Mapping[str, Any] | None, dict[str, str]]:
        """All that makes the picture again, if that is known, and the blobs it names."""
        inputs = sa.select(image_inputs.c.name, image_inputs.c.blob_id).where(image_inputs.c.image == image.number)
        async with self.database.read() as connection:
            job = await connection.scalar(sa.select(images.c.job).where(images.c.number == image.number))
            return job, {row.name: row.blob_id for row in await connection.execute(inputs)}

    async def change(self, image_id: str, owner: str, values: Mapping[str, Any]) -> None:
        """Sets ``starred`` or ``note``. Raises ``NoSuchImage``."""
        told = {name: clean(value) if isinstance(value, str) else value for name, value in values.items()}
        async with self.database.write() as connection:
            image = await find(connection, image_id, owner)
            await connection.execute(sa.update(images).where(images.c.number == image.number).values(told))

    async def page(self, owner: str, query: Query | None = None, before: int | None = None, limit: int = 50) -> list[Image]:
        """An owner's pictures that ``query`` describes, newest first; ``before`` is the ``number`` of the last one of the page before."""
        async with self.database.read() as connection:
            return [read_image(row) for row in await search(connection, COLUMNS, owner, query or Query(), before, limit)]

    async def delete(self, image_id: str, owner: str | None = None) -> None:
        """Deletes the picture with its blobs, for good; pictures made from it stay. Raises ``NoSuchImage``."""
        async with self.database.write() as connection:
            await self.database.order(connection)
            image = await find(connection, image_id, owner)
            await undescribe(connection, image.number)
            inputs = await connection.scalars(sa.select(image_inputs.c.blob_id).where(image_inputs.c.image == image.number))
            await connection.execute(sa.delete(images).where(images.c.number == image.number))
            keys = await drop_blobs(connection, [key for key in (image.blob_id, image.thumbnail_id, *inputs) if key])
        for key in keys:
            await self.blobs.bucket.delete(key)


def read_image(row: Row) -> Image:
    return Image(**{name: getattr(row, name) for name in Image.__slots__})


async def select(connection: Transaction, column: sa.ColumnElement[str], *where: sa.ColumnElement[bool]) -> list[str]:
    return list(await connection.scalars(sa.select(column).where(*where).order_by(column)))


async def find(connection: Transaction, image_id: str, owner: str | None) -> Image:
    if not ID.fullmatch(image_id):
        raise NoSuchImage(image_id[:64])
    query = sa.select(*COLUMNS).select_from(SOURCE).where(images.c.id == image_id)
    row = (await connection.execute(query)).one_or_none()
    if row is None or (owner is not None and row.owner != owner):
        raise NoSuchImage(image_id)
    return read_image(row)


async def find_session(connection: Transaction, made: Made) -> int | None:
    if made.session_id is None:
        return None
    query = sa.select(sessions.c.number).where(sessions.c.id == clean(made.session_id), sessions.c.owner == made.owner)
    number: int | None = await connection.scalar(query)
    if number is None:
        raise NoSuchSession(made.session_id[:64])
    return number
