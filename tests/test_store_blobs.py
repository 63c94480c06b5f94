"""Blobs, users and keys; with both databases where the database matters."""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

import fsspec
import pytest
from argon2 import PasswordHasher

from api.errors import BadInput, Busy, ConfigError, Conflict, NoSuchBlob, TooLarge
from api.store.buckets import Folder, open_bucket
from api.store.keys import check_hash, find_key, hash_key, make_key
from api.store.objects import Objects
from api.store.store import Store
from tests import objects
from tests.databases import KINDS, new_url

pytestmark = pytest.mark.anyio
AGED = -60.0  # an age that even what was written a moment ago is above
CHEAP = PasswordHasher(time_cost=1, memory_cost=64, parallelism=1)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(params=[*KINDS, "s3"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    """Both databases with a folder, and SQLite with an object store."""
    kind, bucket = request.param, None
    if kind == "s3":
        bucket = open_bucket(objects.shared().new_url(), objects.shared().options, tmp_path)
    async with await Store.open(tmp_path, new_url(kind), bucket=bucket) as opened:
        yield opened


def names(store: Store) -> list[str]:
    """What lies in the bucket, asked for behind its back."""
    bucket = store.blobs.bucket
    if isinstance(bucket, Folder):
        return [path.name for path in bucket.root.rglob("*") if path.is_file() and path.name != "database"]
    assert isinstance(bucket, Objects)
    found = fsspec.filesystem("s3", skip_instance_cache=True, **objects.shared().options).find(bucket.root)
    return [name for path in found if (name := path.rpartition("/")[2]) != "database"]


async def pieces(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


async def broken() -> AsyncIterator[bytes]:
    yield b"half of "
    raise ConnectionResetError("the client left")


# --- blobs


async def test_blob_comes_back(store: Store) -> None:
    data = os.urandom(700_001)
    blob = await store.blobs.create("ann", "image/png", data, seconds=60)
    assert (blob.size, blob.sha256, blob.type) == (len(data), hashlib.sha256(data).hexdigest(), "image/png")
    assert blob.expires is not None
    assert 59 < blob.expires - blob.created <= 60.01
    assert await store.blobs.get(blob.id, "ann") == blob == await store.blobs.get(blob.id)
    assert await store.blobs.read(blob) == data
    for start, stop in ((0, 1), (5, 5), (300_000, 600_000), (len(data) - 1, len(data))):
        assert await store.blobs.read(blob, start, stop) == data[start:stop]
    for start, stop in ((-1, 5), (5, 4), (0, len(data) + 1)):
        with pytest.raises(BadInput, match="range"):
            await store.blobs.read(blob, start, stop)


async def test_stream_in(store: Store) -> None:
    blob = await store.blobs.create("ann", "image/webp", pieces(b"ab", b"", b"cde"))
    assert (blob.size, blob.expires) == (5, None)
    assert await store.blobs.read(blob) == b"abcde"
    empty = await store.blobs.create("ann", "text/plain", b"")
    assert await store.blobs.read(empty) == b""


async def test_too_large_or_broken_leaves_nothing(store: Store) -> None:
    with pytest.raises(TooLarge, match="at most 8"):
        await store.blobs.create("ann", "x/y", pieces(b"12345", b"6789"), limit=8)
    with pytest.raises(ConnectionResetError):
        await store.blobs.create("ann", "x/y", broken())
    assert names(store) == []
    assert (await store.blobs.create("ann", "x/y", b"12345678", limit=8)).size == 8


async def test_others_see_nothing(store: Store) -> None:
    blob = await store.blobs.create("ann", "x/y", b"secret")
    for blob_id, owner in ((blob.id, "bob"), ("0" * 32, None), ("../../etc/passwd", None), ("\0", None), ("\ud800", None)):
        with pytest.raises(NoSuchBlob):
            await store.blobs.get(blob_id, owner)
        with pytest.raises(NoSuchBlob):
            await store.blobs.delete(blob_id, owner)
    await store.blobs.delete(blob.id, "ann")
    assert names(store) == []
    with pytest.raises(NoSuchBlob):
        await store.blobs.get(blob.id)
    with pytest.raises(NoSuchBlob):
        await store.blobs.read(blob)


async def test_expiry_and_sweep(store: Store) -> None:
    kept = await store.blobs.create("ann", "x/y", b"kept", seconds=60)
    gone = [await store.blobs.create("ann", "x/y", b"gone", seconds=0.02) for _ in range(5)]
    saved = await store.blobs.create("ann", "x/y", b"saved", seconds=0.5)
    await store.blobs.extend(saved.id, 60)
    await store.blobs.extend(kept.id, 1)  # never shorter than it was
    await asyncio.sleep(0.6)
    for action in (store.blobs.get(gone[0].id), store.blobs.extend(gone[0].id, 60)):
        with pytest.raises(NoSuchBlob):
            await action
    assert [await store.blobs.sweep(3) for _ in range(3)] == [3, 2, 0]
    assert set(names(store)) == {kept.id, saved.id}
    assert await store.blobs.get(kept.id) == kept
    await store.blobs.extend(saved.id, None)
    await store.blobs.extend(saved.id, 1)
    assert (await store.blobs.get(saved.id)).expires is None


async def test_clean_finds_what_a_crash_left(store: Store) -> None:
    blob = await store.blobs.create("ann", "x/y", b"kept")
    assert await store.blobs.clean() == 0
    bucket = store.blobs.bucket
    orphan = "f" * 32
    await bucket.write(orphan, pieces(b"orphan"))
    if isinstance(bucket, Folder):
        (bucket.root / "parts" / ("e" * 32)).write_bytes(b"half")
    assert await store.blobs.clean() == 0  # both are young: they may be uploads in progress
    assert await store.blobs.clean(AGED) == 1
    assert names(store) == [blob.id]


async def test_clean_spares_another_database_s_blobs(store: Store, tmp_path: Path) -> None:
    await store.blobs.create("ann", "x/y", b"kept")
    await store.blobs.clean()
    async with await Store.open(tmp_path / "other", bucket=store.blobs.bucket) as other:
        assert await other.blobs.clean(AGED) == 0
    assert len(names(store)) == 1


async def test_many_at_once(store: Store) -> None:
    made = await asyncio.gather(*(store.blobs.create("ann", "x/y", bytes([n]) * 1000) for n in range(40)))
    read = await asyncio.gather(*(store.blobs.read(blob) for blob in made))
    assert read == [bytes([n]) * 1000 for n in range(40)]


def test_what_is_written_where(tmp_path: Path) -> None:
    for url in (str(tmp_path / "shared"), f"file://{tmp_path}/shared"):
        bucket = open_bucket(url, {}, tmp_path / "data")
        assert isinstance(bucket, Folder)
        assert bucket.root == tmp_path / "shared"
    with pytest.raises(ConfigError, match=r"blobs\.url: .*gopher"):
        open_bucket("gopher://x/y", {}, tmp_path)


async def test_an_object_store_that_is_gone_is_busy(tmp_path: Path) -> None:
    server = objects.ObjectServer()
    server.start()
    bucket = open_bucket(server.new_url(), server.options, tmp_path)
    async with await Store.open(tmp_path, bucket=bucket) as store:
        blob = await store.blobs.create("ann", "x/y", b"kept")
        server.stop()
        for action in (store.blobs.create("ann", "x/y", b"lost"), store.blobs.read(blob), store.blobs.clean(AGED)):
            with pytest.raises(Busy):
                await action
        assert await store.blobs.get(blob.id) == blob


# --- users


async def test_user_signs_up_and_in(store: Store) -> None:
    store.users.hasher = CHEAP
    user = await store.users.create("Ann", "correct horse ü")
    assert await store.users.verify("Ann", "correct horse ü") == user == await store.users.get("ann")
    assert await store.users.verify("ann", "correct horse u\u0308") == user  # the same letter, as another keyboard sends it
    for name, password in (
        ("Ann", "wrong horse"),
        ("Bob", "correct horse ü"),
        ("\0", "x"),
        ("Ann", ""),
        ("Ann", "\ud800"),
        ("Ann", "x" * 10**6),
    ):
        assert await store.users.verify(name, password) is None
    async with store.database.read() as connection:
        from api.store.tables import users

        stored = await connection.scalar(users.select().with_only_columns(users.c.password))
    assert stored.startswith("$argon2id$")


async def test_names_are_unique(store: Store) -> None:
    store.users.hasher = CHEAP
    results = await asyncio.gather(
        *(store.users.create(name, "password") for name in ("ann", "ANN", "ａｎｎ", "Ann")), return_exceptions=True
    )
    assert sorted(type(result).__name__ for result in results) == ["Conflict", "Conflict", "Conflict", "User"]
    with pytest.raises(Conflict, match="taken"):
        await store.users.create("ann", "password")


@pytest.mark.parametrize(
    ("name", "password"),
    [("", "password"), ("a b", "password"), ("x" * 65, "password"), ("a\0b", "password"), ("ann", "short"), ("ann", "x" * 1025)],
)
async def test_bad_sign_ups(store: Store, name: str, password: str) -> None:
    with pytest.raises(BadInput):
        await store.users.create(name, password)


async def test_hash_is_renewed_when_parameters_change(store: Store) -> None:
    store.users.hasher = CHEAP
    await store.users.create("ann", "password")
    store.users.hasher = PasswordHasher(time_cost=2, memory_cost=64, parallelism=1)
    assert await store.users.verify("ann", "password")
    row = await store.users.find("ann")
    assert row is not None
    assert "t=2" in row.password
    assert await store.users.set_password("ann", "other password")
    assert not await store.users.set_password("bob", "other password")
    assert await store.users.verify("ann", "password") is None
    assert await store.users.verify("ann", "other password")


async def test_unknown_name_takes_as_long_as_a_wrong_password(tmp_path: Path) -> None:
    async with await Store.open(tmp_path) as store:
        store.users.hasher = PasswordHasher(time_cost=2, memory_cost=16384, parallelism=1)
        await store.users.create("ann", "password")
        await store.users.verify("bob", "wrong password")
        used: dict[str, float] = {}
        for name in ("ann", "bob"):
            begun = time.process_time()  # not the wall clock: the machine has other things to do
            for _ in range(3):
                assert await store.users.verify(name, "wrong password") is None
            used[name] = time.process_time() - begun
    assert 0.5 < used["ann"] / used["bob"] < 2, used


# --- keys


def test_keys() -> None:
    keys = {name: make_key() for name in ("ci", "app")}
    hashes = {name: check_hash(hash_key(key)) for name, key in keys.items()}
    assert [find_key(keys[name], hashes) for name in keys] == list(keys)
    for wrong in (make_key(), "", "\ud800", hashes["ci"], keys["ci"] + " "):
        assert find_key(wrong, hashes) is None
    with pytest.raises(ConfigError, match="at least 20"):
        hash_key("password")
    for bad in (keys["ci"], "sha256:", hashes["ci"] + "0"):
        with pytest.raises(ValueError, match="hexadecimal"):
            check_hash(bad)


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
