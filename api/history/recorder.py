"""Records pictures: their files first, then all rows in one transaction, so that a picture is there as a whole or not at all."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import sqlalchemy as sa

from api.engine.codec import Encoding, encode
from api.history.origin import Entry, Origin
from api.history.thumbnails import TYPE, shrink
from api.models.jobs import Pixels
from api.store.database import Transaction
from api.store.groups import find_images
from api.store.images import Made
from api.store.store import Store
from api.store.tables import blobs, images
from api.store.texts import check_title

AGE = 3600.0
"""Seconds that a file without a picture would be kept; within the transaction it becomes the picture's."""


class Recorder:
    def __init__(self, store: Store) -> None:
        self.store = store

    async def check(self, origin: Origin) -> None:
        """Before anything is computed. Raises ``BadInput`` for a session's name, ``NoSuchImage`` for a parent."""
        if origin.session is not None:
            check_title(origin.session)
        if origin.parents:
            async with self.store.database.read() as connection:
                await find_images(connection, origin.owner, origin.parents)

    async def record(self, origin: Origin, entries: Sequence[Entry]) -> list[str]:
        """The ids of the recorded pictures, in their order. Raises ``Busy``."""
        prepared = await self.prepare(origin, entries)
        async with self.store.database.write() as connection:
            await prepared.insert(connection)
        return prepared.ids

    async def prepare(self, origin: Origin, entries: Sequence[Entry]) -> Prepared:
        """Writes the files; ``insert`` makes pictures of them. Without it they are orphans, which ``Blobs.clean`` deletes."""
        prepared = Prepared(self.store, origin, [], [])
        for entry in entries:
            await prepared.take(entry)
        return prepared


@dataclass(frozen=True, slots=True)
class Prepared:
    store: Store
    origin: Origin
    made: list[Made]
    files: list[dict[str, Any]]

    @property
    def ids(self) -> list[str]:
        return [made.id for made in self.made]

    async def take(self, entry: Entry) -> None:
        picture = entry.picture
        blob_id = await self.keep(picture.mime_type, picture.data)
        film = not picture.mime_type.startswith("image/")  # of which lists cannot show the file itself
        small = await asyncio.to_thread(shrink, entry.cover or picture.data, always=film)
        inputs = {name: await self.keep("image/png", await asyncio.to_thread(as_png, pixels)) for name, pixels in entry.inputs.items()}
        made = Made(
            owner=self.origin.owner,
            kind=entry.kind,
            model=entry.model[:255],
            width=picture.width,
            height=picture.height,
            recipe=entry.recipe,
            blob_id=blob_id,
            thumbnail_id=None if small is None else await self.keep(TYPE, small),
            label=None if picture.label is None else picture.label[:255],
            prompt=entry.prompt,
            seed=picture.seed,
            task_id=entry.task_id,
            directions=entry.directions,
            job=entry.job,
            inputs=inputs,
        )
        self.made.append(made)

    async def keep(self, mime_type: str, data: bytes) -> str:
        values = await self.store.blobs.put(self.origin.owner, mime_type, data, seconds=AGE)
        self.files.append(values)
        return str(values["id"])

    async def insert(self, connection: Transaction) -> None:
        """The rows, within a transaction such as the one that finishes a task."""
        await self.store.database.order(connection)
        for values in self.files:
            await connection.execute(sa.insert(blobs).values(values))
        session = None
        if self.origin.session is not None:
            session = await self.store.sessions.enter(connection, self.origin.owner, self.origin.session)
        parents = await find_parents(connection, self.origin)
        for made in self.made:
            await self.store.images.insert(connection, replace(made, session_id=session, parents=parents))


async def find_parents(connection: Transaction, origin: Origin) -> Sequence[str]:
    """Those that are there still."""
    if not (origin.parents or origin.blobs):
        return []
    named = sa.or_(images.c.id.in_(origin.parents), images.c.blob_id.in_(origin.blobs))
    return await connection.scalars(sa.select(images.c.id).where(images.c.owner == origin.owner, named).order_by(images.c.number))


def as_png(pixels: Pixels) -> bytes:
    return encode(pixels if pixels.ndim == 3 else pixels[:, :, None], Encoding("png"))
