"""What belongs to a picture and comes and goes with it: tags, the words of its prompt, its files."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import sqlalchemy as sa

from api.errors import NoSuchBlob
from api.store.blobs import ALIVE, NEEDED
from api.store.database import Transaction
from api.store.groups import link_images, name_rows, prune
from api.store.tables import Now, blobs, image_inputs, image_tags, image_words, images, tags, words
from api.store.texts import check_tag, split_words

if TYPE_CHECKING:
    from api.store.images import Made


async def describe(connection: Transaction, owner: str, number: int, names: Iterable[str], prompt: str | None) -> None:
    """The rows of tags and words. Raises ``BadInput`` for a tag."""
    for table, links, first, found in (
        (tags, image_tags, "tag", [check_tag(tag) for tag in names]),
        (words, image_words, "word", split_words(prompt or "")),
    ):
        if found:
            await link_images(connection, links, first, await name_rows(connection, table, owner, found), [number])


async def undescribe(connection: Transaction, number: int) -> None:
    for table, links, first in ((tags, image_tags, "tag"), (words, image_words, "word")):
        mine = sa.delete(links).where(links.c.image == number).returning(links.c[first])
        await prune(connection, table, links, first, (await connection.execute(mine)).scalars().all())


async def keep_blobs(connection: Transaction, made: Made) -> None:
    wanted = {made.blob_id, made.thumbnail_id, *made.inputs.values()} - {None}
    update = sa.update(blobs).where(blobs.c.id.in_(wanted), blobs.c.owner == made.owner, ALIVE).values(expires=None)
    kept = set((await connection.execute(update.returning(blobs.c.id))).scalars())
    for blob_id in wanted - kept:
        raise NoSuchBlob(blob_id)


async def drop_blobs(connection: Transaction, ids: Sequence[str]) -> list[str]:
    """Deletes the rows of those blobs that no picture has any more; gives their ids."""
    columns = (images.c.blob_id, images.c.thumbnail_id, image_inputs.c.blob_id)
    unused = [~sa.exists().where(column == blobs.c.id) for column in columns]
    await connection.execute(sa.update(blobs).where(blobs.c.id.in_(ids), *unused, NEEDED).values(expires=Now()))
    gone = sa.delete(blobs).where(blobs.c.id.in_(ids), *unused, ~NEEDED).returning(blobs.c.id)
    return list((await connection.execute(gone)).scalars())
