"""Deletions that can be undone, and what is kept with pictures, on SQLite and PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from api.errors import NoSuchBlob, NoSuchImage
from api.store.images import Image, Made
from api.store.search import Query
from api.store.store import Options, Store
from api.store.tables import blobs, image_inputs, image_tags, image_words, images, sessions, tags, words
from tests.databases import KINDS, new_url

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(params=KINDS)
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    async with await Store.open(tmp_path, new_url(request.param), options=Options(undo=0.0)) as opened:
        yield opened


async def record(store: Store, owner: str = "ann", **values: Any) -> Image:
    blob = await store.blobs.create(owner, "image/png", b"picture", seconds=60)
    plain = {"kind": "generate", "model": "faces", "width": 64, "height": 64, "recipe": {"Seed": 1}}
    return await store.images.add(Made(owner=owner, blob_id=blob.id, **{**plain, **values}))


async def count(store: Store, table: sa.Table) -> int:
    async with store.database.read() as connection:
        found: int = await connection.scalar(sa.select(sa.func.count()).select_from(table))
        return found


async def test_what_is_deleted_is_met_nowhere_and_comes_back(store: Store) -> None:
    box = await store.collections.create("ann", "box")
    session = await store.sessions.create("ann", "s")
    image = await record(store, tags=["a", "b"], prompt="red hair", session_id=session.id)
    await store.collections.change(box.id, "ann", [image.id])
    relations = await store.images.relations(image)
    await store.trash.put(image.id, "ann")
    for query in (Query(), Query(tags=["a"]), Query(text="red"), Query(session_id=session.id), Query(collection_id=box.id)):
        assert await store.images.page("ann", query) == []
    assert await store.tags.of_owner("ann") == []
    assert (await store.sessions.get(session.id, "ann")).images == (await store.collections.get(box.id, "ann")).images == 0
    for action in (store.images.get(image.id, "ann"), store.trash.put(image.id, "ann"), store.trash.restore(image.id, "bob")):
        with pytest.raises(NoSuchImage):
            await action
    await store.trash.restore(image.id, "ann")
    assert await store.images.get(image.id, "ann") == image
    assert await store.images.relations(image) == relations
    assert await store.images.page("ann", Query(text="hair red", tags=["b"])) == [image]


async def test_what_it_belonged_to_may_be_gone_meanwhile(store: Store) -> None:
    box = await store.collections.create("ann", "box")
    session = await store.sessions.create("ann", "s")
    image = await record(store, session_id=session.id)
    await store.collections.change(box.id, "ann", [image.id])
    await store.trash.put(image.id, "ann")
    await store.collections.delete(box.id, "ann")
    await store.sessions.delete(session.id, "ann")
    await store.trash.restore(image.id, "ann")
    assert (await store.images.get(image.id, "ann")).session_id is None
    assert (await store.images.relations(image)).collections == []


async def test_a_sweep_takes_the_deleted_with_their_files_and_nothing_else(store: Store) -> None:
    uploads = [await store.blobs.create("ann", "image/png", b"input", seconds=60) for _ in range(2)]
    kept = await record(store, tags=["a"], prompt="red", inputs={"image": uploads[0].id})
    gone = await record(
        store, tags=["a", "b"], prompt="red hair", inputs={"image": uploads[0].id, "mask": uploads[1].id}, parents=[kept.id]
    )
    await store.trash.put(gone.id, "ann")
    assert await store.trash.sweep(3600) == 0
    await store.sweep()
    assert [await count(store, table) for table in (images, image_inputs, tags, words, image_tags, image_words)] == [1, 1, 1, 1, 1, 1]
    assert await count(store, blobs) == 2
    for blob_id in (gone.blob_id, uploads[1].id):
        with pytest.raises(NoSuchBlob):
            await store.blobs.get(blob_id)
    assert await store.blobs.read(await store.blobs.get(uploads[0].id)) == b"input"
    with pytest.raises(NoSuchImage):
        await store.trash.restore(gone.id, "ann")


async def test_restoring_and_sweeping_at_once_loses_nothing_that_was_restored(store: Store) -> None:
    made = [await record(store, tags=["a"], prompt="some words") for _ in range(12)]
    for image in made:
        await store.trash.put(image.id, "ann")
    work = [store.trash.restore(image.id, "ann") for image in made] + [store.trash.sweep(0.0) for _ in range(3)]
    results = await asyncio.gather(*work, return_exceptions=True)
    back = [image for image, result in zip(made, results, strict=False) if result is None]
    assert {type(result) for result in results} <= {type(None), int, NoSuchImage}
    assert [image.id for image in await store.images.page("ann")] == [image.id for image in reversed(back)]
    for image in back:
        assert await store.blobs.read(await store.blobs.get(image.blob_id)) == b"picture"


async def test_a_session_is_made_once_by_its_name(store: Store) -> None:
    async def enter(owner: str, text: str) -> str:
        async with store.database.write() as connection:
            await store.database.order(connection)
            return await store.sessions.enter(connection, owner, text)

    found = await asyncio.gather(*(enter("ann", " walk ") for _ in range(8)))
    assert len(set(found)) == 1
    assert await enter("ann", found[0]) == found[0]
    assert await enter("bob", found[0]) != found[0]  # to others an id is a name
    assert await count(store, sessions) == 2


async def test_a_job_and_its_inputs_are_kept(store: Store) -> None:
    blob = await store.blobs.create("ann", "image/png", b"input", seconds=60)
    image = await record(store, job={"kind": "Diffuse", "parameters": {"steps": 2}}, inputs={"image": blob.id})
    assert await store.images.job(image) == ({"kind": "Diffuse", "parameters": {"steps": 2}}, {"image": blob.id})
    assert (await store.blobs.get(blob.id)).expires is None
    foreign = await store.blobs.create("bob", "image/png", b"input", seconds=60)
    with pytest.raises(NoSuchBlob):
        await record(store, inputs={"image": foreign.id})


async def test_stars_are_searched(store: Store) -> None:
    made = [await record(store) for _ in range(4)]
    for image in made[::2]:
        await store.images.change(image.id, "ann", {"starred": True, "note": "a\0b"})
    starred = await store.images.page("ann", Query(starred=True))
    assert [(image.id, image.note) for image in starred] == [(made[2].id, "ab"), (made[0].id, "ab")]
    assert [image.id for image in await store.images.page("ann", Query(starred=False, model="faces"))] == [made[3].id, made[1].id]
    with pytest.raises(NoSuchImage):
        await store.images.change(made[0].id, "bob", {"starred": False})
