"""What a task is made from stays until the task has ended, however long it waits; with both databases."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from api.errors import NoSuchBlob
from api.store.store import Store
from tests.databases import KINDS, new_url

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(params=KINDS)
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    async with await Store.open(tmp_path, new_url(request.param)) as opened:
        yield opened


async def test_a_task_keeps_its_pictures_until_it_has_ended(store: Store) -> None:
    held, free = [await store.blobs.create("ann", "image/png", b"x", seconds=0.2) for _ in range(2)]
    await store.tasks.create("ann", "img2img", {"image": held.id}, blob_ids=[held.id, held.id])
    await asyncio.sleep(0.3)
    assert await store.blobs.sweep() == 1
    with pytest.raises(NoSuchBlob):
        await store.blobs.get(free.id)
    claim = await store.queue.claim("worker", 60.0)
    assert claim is not None
    assert await store.blobs.sweep() == 0
    assert await store.blobs.read(await store.blobs.get(held.id, "ann")) == b"x"
    await store.queue.finish(claim, {})
    with pytest.raises(NoSuchBlob):
        await store.blobs.get(held.id)
    assert await store.blobs.sweep() == 1


async def test_a_cancelled_task_keeps_nothing(store: Store) -> None:
    blob = await store.blobs.create("ann", "image/png", b"x", seconds=0.2)
    task = await store.tasks.create("ann", "img2img", {}, blob_ids=[blob.id])
    await store.tasks.cancel(task.id)
    await asyncio.sleep(0.3)
    assert await store.blobs.sweep() == 1


async def test_a_task_whose_picture_has_gone_is_not_made(store: Store) -> None:
    with pytest.raises(NoSuchBlob):
        await store.tasks.create("ann", "img2img", {}, blob_ids=["0" * 32])
    assert await store.tasks.of_owner("ann") == []


async def test_a_picture_may_be_deleted_under_its_task(store: Store) -> None:
    blob = await store.blobs.create("ann", "image/png", b"x")
    task = await store.tasks.create("ann", "img2img", {}, blob_ids=[blob.id])
    await store.blobs.delete(blob.id)
    assert (await store.tasks.get(task.id)).state == "pending"
