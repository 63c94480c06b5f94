"""Blobs: pictures that were sent or made. What they are is in the database, their bytes lie in a bucket.

The bytes are written before the row and deleted after it, so that a row always has its bytes; what a crash leaves over is bytes without
a row, and ``clean`` finds those.
"""

from __future__ import annotations

import hashlib
import logging
import secrets
from collections.abc import AsyncIterable, AsyncIterator
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from api.errors import BadInput, Busy, Conflict, NoSuchBlob, TooLarge
from api.store.buckets import Bucket
from api.store.database import Database
from api.store.tables import Now, about, blobs, task_blobs, tasks
from api.store.tasks import ID

log = logging.getLogger(__name__)

ORPHAN_AGE = 3600.0
"""Seconds after which bytes without a row are no upload in progress any more."""


@dataclass(frozen=True, slots=True)
class Blob:
    """``type`` is the media type, ``sha256`` hexadecimal (a good ETag), times Unix seconds; ``expires`` ``None`` is never."""

    id: str
    owner: str
    type: str
    size: int
    sha256: str
    created: float
    expires: float | None


COLUMNS = tuple(blobs.c[name] for name in Blob.__slots__)
NEEDED = sa.exists().where(
    task_blobs.c.blob_id == blobs.c.id, tasks.c.number == task_blobs.c.task, tasks.c.state.in_(("pending", "running"))
)
"""A task that waits or runs keeps what it is made from, however long that takes."""
ALIVE = sa.or_(blobs.c.expires.is_(None), blobs.c.expires > Now(), NEEDED)


class Blobs:
    def __init__(self, database: Database, bucket: Bucket) -> None:
        self.database, self.bucket = database, bucket

    async def create(
        self, owner: str, type: str, data: bytes | AsyncIterable[bytes], *, seconds: float | None = None, limit: int | None = None
    ) -> Blob:
        """Stores a blob that expires after ``seconds``. Raises ``TooLarge`` beyond ``limit`` bytes, and then keeps nothing."""
        values = await self.put(owner, type, data, seconds=seconds, limit=limit)
        try:
            async with self.database.write() as connection:
                row = (await connection.execute(sa.insert(blobs).values(values).returning(*COLUMNS))).one()
        except Busy:
            # Whether a server that is gone has the row, nobody knows; without one, the bytes are found by ``clean``.
            if self.database.sqlite:
                await self.bucket.delete(values["id"])
            raise
        except Exception:
            await self.bucket.delete(values["id"])
            raise
        return Blob(*row)

    async def put(
        self, owner: str, type: str, data: bytes | AsyncIterable[bytes], *, seconds: float | None = None, limit: int | None = None
    ) -> dict[str, Any]:
        """Only the bytes, with the row that is to be inserted for them. Raises ``TooLarge``."""
        meter, key = Meter(data, limit), secrets.token_hex(16)
        await self.bucket.write(key, meter.chunks())
        values = {"id": key, "owner": owner, "type": type, "size": meter.size, "sha256": meter.hash.hexdigest()}
        return values | {"created": Now(), "expires": None if seconds is None else Now() + seconds}

    async def get(self, blob_id: str, owner: str | None = None) -> Blob:
        """Raises ``NoSuchBlob``, also for an expired one and for another owner's; ``owner`` ``None`` may see all."""
        if not ID.fullmatch(blob_id):
            raise NoSuchBlob(blob_id[:64])
        async with self.database.read() as connection:
            row = (await connection.execute(sa.select(*COLUMNS).where(blobs.c.id == blob_id, ALIVE))).one_or_none()
        if row is None or (owner is not None and row.owner != owner):
            raise NoSuchBlob(blob_id)
        return Blob(*row)

    def stream(self, blob: Blob, start: int = 0, stop: int | None = None) -> AsyncIterator[bytes]:
        """The bytes ``start`` … ``stop`` − 1 in pieces. Raises ``BadInput`` for a range outside of the blob, ``NoSuchBlob``."""
        stop = blob.size if stop is None else stop
        if not 0 <= start <= stop <= blob.size:
            raise BadInput(f"found the range {start} … {stop}; use one within 0 … {blob.size}")
        return self.bucket.read(blob.id, start, stop)

    async def read(self, blob: Blob, start: int = 0, stop: int | None = None) -> bytes:
        return b"".join([chunk async for chunk in self.stream(blob, start, stop)])

    async def extend(self, blob_id: str, seconds: float | None) -> None:
        """Lets a blob live for ``seconds`` from now, but never shorter than before; ``None`` is for ever. Raises ``NoSuchBlob``."""
        later = sa.null() if seconds is None else sa.case((blobs.c.expires > Now() + seconds, blobs.c.expires), else_=Now() + seconds)
        kept = sa.case((blobs.c.expires.is_(None), sa.cast(sa.null(), sa.Double)), else_=later)
        update = sa.update(blobs).where(blobs.c.id == blob_id, ALIVE).values(expires=kept)
        async with self.database.write() as connection:
            if (await connection.execute(update.returning(blobs.c.id))).one_or_none() is None:
                raise NoSuchBlob(blob_id[:64])

    async def delete(self, blob_id: str, owner: str | None = None) -> None:
        """Raises ``NoSuchBlob``, and ``Conflict`` for one that belongs to a recorded picture."""
        blob = await self.get(blob_id, owner)
        try:
            async with self.database.write() as connection:
                await connection.execute(sa.delete(blobs).where(blobs.c.id == blob.id))
        except IntegrityError:
            raise Conflict(f"the blob {blob.id} belongs to a picture; delete that") from None
        await self.bucket.delete(blob.id)

    async def sweep(self, limit: int = 100) -> int:
        """Deletes up to ``limit`` expired blobs; tells how many."""
        old = sa.select(blobs.c.id).where(blobs.c.expires < Now(), ~NEEDED).order_by(blobs.c.expires).limit(limit)
        async with self.database.write() as connection:
            keys = await connection.scalars(old.with_for_update(skip_locked=True))
            await connection.execute(sa.delete(blobs).where(blobs.c.id.in_(keys)))
        for key in keys:
            await self.bucket.delete(key)
        return len(keys)

    async def clean(self, age: float = ORPHAN_AGE) -> int:
        """Deletes bytes without a row that are older than ``age`` seconds; tells how many.

        A bucket that another database wrote into is left alone: with the wrong URL in the TOML everything in it would seem lost.
        """
        async with self.database.read() as connection:
            name = await connection.scalar(sa.select(about.c.value).where(about.c.key == "id"))
        if not await self.bucket.adopt(str(name)):
            log.warning("the blobs belong to another database; those without a row here are kept")
            return 0
        count = 0
        async for keys in self.bucket.keys(age):
            async with self.database.read() as connection:
                known = set(await connection.scalars(sa.select(blobs.c.id).where(blobs.c.id.in_(keys))))
            for key in set(keys) - known:
                await self.bucket.delete(key)
                count += 1
        return count


class Meter:
    """Counts and hashes what passes."""

    def __init__(self, data: bytes | AsyncIterable[bytes], limit: int | None) -> None:
        self.data, self.limit = data, limit
        self.size, self.hash = 0, hashlib.sha256()

    async def chunks(self) -> AsyncIterator[bytes]:
        async for chunk in once(self.data) if isinstance(self.data, bytes) else self.data:
            self.size += len(chunk)
            if self.limit is not None and self.size > self.limit:
                raise TooLarge(f"found more than {self.limit} bytes; send at most {self.limit}")
            self.hash.update(chunk)
            yield chunk


async def once(data: bytes) -> AsyncIterator[bytes]:
    yield data
