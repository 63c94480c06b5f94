"""Pictures that are kept, on SQLite and PostgreSQL: recording, relations, search."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import statistics
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from api.errors import BadInput, Conflict, LeaseLost, NoSuchBlob, NoSuchCollection, NoSuchImage, NoSuchSession, NoSuchTag
from api.store.images import Image, Made
from api.store.search import Query
from api.store.store import Store
from api.store.tables import blobs, image_collections, image_tags, image_words, images, sessions, tags, words
from api.store.texts import check_tag, split_words
from tests.databases import KINDS, new_url

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(params=KINDS)
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    async with await Store.open(tmp_path, new_url(request.param)) as opened:
        yield opened


async def record(store: Store, owner: str = "ann", **values: Any) -> Image:
    return await store.images.add(await make(store, owner, **values))


async def make(store: Store, owner: str = "ann", **values: Any) -> Made:
    blob = await store.blobs.create(owner, "image/png", b"picture", seconds=60)
    small = await store.blobs.create(owner, "image/webp", b"small", seconds=60)
    plain = {"kind": "generate", "model": "faces", "width": 64, "height": 64, "recipe": {"seed": 1}}
    return Made(owner=owner, blob_id=blob.id, thumbnail_id=small.id, **{**plain, **values})


async def ids(store: Store, **query: Any) -> list[str]:
    return [image.id for image in await store.images.page("ann", Query(**query))]


async def count(store: Store, table: sa.Table) -> int:
    async with store.database.read() as connection:
        found: int = await connection.scalar(sa.select(sa.func.count()).select_from(table))
        return found


# --- recording


async def test_picture_with_all_it_can_have(store: Store) -> None:
    session = await store.sessions.create("ann", "tuesday")
    first = await record(store)
    made = await make(
        store,
        kind="edit",
        label="cat",
        prompt="A \0 cat \ud800",
        seed=2**32 - 1,
        recipe={"prompt": "A \0 cat \ud800"},
        session_id=session.id,
        task_id="f" * 32,
        parents=[first.id],
        directions={"happy": 0.6, "glasses": -0.2},
        tags=["Best  OF", "best of", "cats"],
    )
    image = await store.images.add(made)
    assert image == await store.images.get(image.id, "ann") == await store.images.get(image.id)
    assert (image.label, image.prompt, image.seed, image.session_id) == ("cat", "A  cat ?", 2**32 - 1, session.id)
    assert image.recipe == {"prompt": "A \0 cat \ud800"}
    assert abs(image.created - time.time()) < 5
    kept = await store.blobs.get(image.blob_id)
    assert kept.expires is None
    group = await store.collections.create("ann", "cats")
    await store.collections.change(group.id, "ann", [image.id])
    relations = await store.images.relations(image)
    assert (relations.parents, relations.children) == ([first.id], [])
    assert (relations.tags, relations.collections) == (["best of", "cats"], [group.id])
    assert relations.directions == {"happy": 0.6, "glasses": -0.2}
    assert (await store.images.relations(first)).children == [image.id]
    assert await store.images.add(await make(store, directions={"happy": 1.0}))  # the direction exists already


async def test_refused_pictures_leave_nothing(store: Store) -> None:
    foreign = await record(store, "bob")
    theirs = await store.sessions.create("bob", "x")
    good = await make(store)
    for change, error in (
        ({"session_id": theirs.id}, NoSuchSession),
        ({"session_id": "\0"}, NoSuchSession),
        ({"parents": [foreign.id]}, NoSuchImage),
        ({"parents": ["\ud800"]}, NoSuchImage),
        ({"tags": [" "]}, BadInput),
        ({"blob_id": foreign.blob_id}, NoSuchBlob),
        ({"blob_id": "0" * 32}, NoSuchBlob),
    ):
        values = {name: getattr(good, name) for name in Made.__slots__} | change
        with pytest.raises(error):
            await store.images.add(Made(**values))
    assert await count(store, images) == 1
    assert (await store.blobs.get(good.blob_id)).expires is not None


async def test_recorded_in_the_transaction_that_finishes_the_task(store: Store) -> None:
    task = await store.tasks.create("ann", "x", {})
    claim = await store.queue.claim("w", 30)
    assert claim is not None
    made = await make(store, task_id=task.id)

    async def also(connection: Any) -> None:
        await store.images.insert(connection, made)

    cancelling = store.queue.finish(claim, {}, also=also)
    await cancelling
    with pytest.raises(LeaseLost):
        await store.queue.finish(claim, {}, also=also)
    assert [image.task_id for image in await store.images.page("ann")] == [task.id]


async def test_delete(store: Store) -> None:
    parent = await record(store, tags=["a", "b"], prompt="red hair")
    child = await record(store, tags=["b"], prompt="red nose", parents=[parent.id])
    with pytest.raises(Conflict, match="belongs to a picture"):
        await store.blobs.delete(parent.blob_id)
    with pytest.raises(NoSuchImage):
        await store.images.delete(parent.id, "bob")
    await store.images.delete(parent.id, "ann")
    for blob_id in (parent.blob_id, parent.thumbnail_id or ""):
        with pytest.raises(NoSuchBlob):
            await store.blobs.get(blob_id)
    with pytest.raises(NoSuchImage):
        await store.images.get(parent.id)
    assert (await store.images.relations(child)).parents == []
    assert await store.tags.of_owner("ann") == [("b", 1)]
    assert await count(store, words) == 2
    assert await store.blobs.read(await store.blobs.get(child.blob_id)) == b"picture"


async def test_cancels_and_deletes_do_not_deadlock(store: Store) -> None:
    made = [await record(store, tags=["a"], prompt="some words here") for _ in range(8)]
    group = await store.collections.create("ann", "all")
    work: list[Any] = []
    for n, image in enumerate(made):
        work += [
            store.collections.change(group.id, "ann", [each.id for each in made[4:]]),
            store.tags.put(image.id, "ann", [f"t{n % 3}", "a"]),
        ]
        work += [store.images.delete(image.id, "ann")] if n < 4 else [record(store, tags=["a", "z"], prompt="here are words")]
    results = await asyncio.gather(*work, return_exceptions=True)
    assert {type(result) for result in results} <= {type(None), Image, NoSuchImage}
    assert len(await store.images.page("ann")) == 8


async def test_what_goes_while_somebody_refers_to_it_does_no_harm(store: Store) -> None:
    image = await record(store)

    async def put(n: int) -> None:
        group = await store.collections.create("ann", f"box {n}")
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(attempt(store.collections.change(group.id, "ann", [image.id])))
            tasks.create_task(attempt(store.collections.delete(group.id, "ann")))

    async def tag() -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(attempt(store.tags.put(image.id, "ann", ["a", "b"])))
            tasks.create_task(attempt(store.tags.rename("a", "ann", "c")))
            tasks.create_task(attempt(store.tags.delete("b", "ann")))

    async def attempt(action: Any) -> None:
        with contextlib.suppress(Conflict, NoSuchCollection, NoSuchTag):
            await action

    await asyncio.gather(*(put(n) for n in range(20)), *(tag() for _ in range(20)))


async def test_blobs_that_a_task_needs_outlive_their_picture(store: Store) -> None:
    image = await record(store)
    task = await store.tasks.create("ann", "x", {}, blob_ids=[image.blob_id])
    await store.images.delete(image.id)
    assert await store.blobs.read(await store.blobs.get(image.blob_id)) == b"picture"
    await store.tasks.cancel(task.id, "ann")
    with pytest.raises(NoSuchBlob):
        await store.blobs.get(image.blob_id)


# --- groups


async def test_sessions(store: Store) -> None:
    first, second = [await store.sessions.create("ann", name) for name in ("one", "same")]
    await store.sessions.create("ann", "same")
    image = await record(store, session_id=first.id)
    await store.sessions.rename(first.id, "ann", " uno ")
    assert [(group.name, group.images) for group in await store.sessions.page("ann")] == [("same", 0), ("same", 0), ("uno", 1)]
    assert [group.id for group in await store.sessions.page("ann", before=second.number)] == [first.id]
    for action in (store.sessions.get(first.id, "bob"), store.sessions.delete(first.id, "bob"), store.sessions.rename("\0", "ann", "x")):
        with pytest.raises(NoSuchSession):
            await action
    await store.sessions.delete(first.id, "ann")
    assert (await store.images.get(image.id)).session_id is None


async def test_collections(store: Store) -> None:
    made = [await record(store) for _ in range(3)]
    group = await store.collections.create("ann", "best")
    other = await store.collections.create("ann", "rest")
    for name in ("best", " best "):
        with pytest.raises(Conflict):
            await store.collections.create("ann", name)
    with pytest.raises(Conflict):
        await store.collections.rename(other.id, "ann", "best")
    await store.collections.change(group.id, "ann", [image.id for image in made])
    await store.collections.change(group.id, "ann", [made[0].id, made[0].id])
    await store.collections.change(group.id, "ann", remove=[made[1].id])
    assert (await store.collections.get(group.id, "ann")).images == 2
    assert await ids(store, collection_id=group.id) == [made[2].id, made[0].id]
    foreign = await record(store, "bob")
    with pytest.raises(NoSuchImage):
        await store.collections.change(group.id, "ann", [foreign.id])
    with pytest.raises(NoSuchCollection):
        await store.collections.change(group.id, "bob", [foreign.id])
    await store.collections.delete(group.id, "ann")
    assert await ids(store, collection_id=group.id) == []
    assert len(await ids(store)) == 3


async def test_tags(store: Store) -> None:
    made = [await record(store) for _ in range(2)]
    await store.tags.put(made[0].id, "ann", ["Red", "blue"])
    await store.tags.put(made[1].id, "ann", ["red", "RED "])
    assert await store.tags.of_owner("ann") == [("blue", 1), ("red", 2)]
    assert await store.tags.of_owner("bob") == []
    await store.tags.remove(made[0].id, "ann", "BLUE")
    assert await store.tags.of_owner("ann") == [("red", 2)]
    with pytest.raises(NoSuchTag):
        await store.tags.remove(made[0].id, "ann", "blue")
    for bad in ("", "x" * 65, "a\0b"):
        with pytest.raises(BadInput):
            await store.tags.put(made[0].id, "ann", [bad])
    with pytest.raises(NoSuchImage):
        await store.tags.put(made[0].id, "bob", ["red"])


# --- search


@pytest.mark.parametrize("tag", ["ß\u0301", "İ", "ŉ\u0308", " Two  words "])
def test_a_tags_form_has_the_same_form(tag: str) -> None:
    assert check_tag(check_tag(tag)) == check_tag(tag)


def test_words() -> None:
    assert split_words("A smiling (face:1.3), RED-hair; Straße 赤い髪 ａ") == [
        "a",
        "smiling",
        "face",
        "1",
        "3",
        "red",
        "hair",
        "strasse",
        "赤",
        "い",
        "髪",
    ]
    assert split_words("\0\ud800 " + "x" * 100) == ["x" * 64]


async def test_every_filter_alone_and_together(store: Store) -> None:
    """Against a plain loop over all pictures."""
    seed = random.randrange(2**32)
    print("seed", seed)
    draw = random.Random(seed)
    groups = [await store.sessions.create("ann", name) for name in "st"]
    boxes = [await store.collections.create("ann", name) for name in "cd"]
    made: list[tuple[Image, dict[str, Any]]] = []
    for _ in range(24):
        facts: dict[str, Any] = {"model": draw.choice("mn"), "label": draw.choice(["x", "y", None]), "session_id": draw.choice(groups).id}
        facts |= {
            "tags": draw.sample(["t", "u"], draw.randrange(3)),
            "prompt": " ".join(draw.sample(["red", "hair", "glasses"], draw.randrange(4))),
        }
        image = await record(store, **facts)
        box = draw.choice(boxes).id
        await store.collections.change(box, "ann", [image.id])
        made.append((image, facts | {"collection_id": box}))
    await record(store, "bob", model="m")
    for _ in range(30):
        query: dict[str, Any] = {
            "model": draw.choice(["m", None]),
            "label": draw.choice(["x", None]),
            "session_id": draw.choice([groups[0].id, None]),
        }
        query |= {
            "tags": draw.choice([(), ("T",), ("t", "u")]),
            "text": draw.choice([None, "red", "Hair, red!"]),
            "collection_id": draw.choice([boxes[0].id, None]),
        }
        query |= {"since": draw.choice([None, made[6][0].created]), "until": draw.choice([None, made[18][0].created])}
        wanted = [image.id for image, facts in reversed(made) if fits(image, facts, query)]
        before, got = None, []
        while page := await store.images.page("ann", Query(**query), before, 7):
            got += [image.id for image in page]
            before = page[-1].number
        assert got == wanted, query


def fits(image: Image, facts: dict[str, Any], query: dict[str, Any]) -> bool:
    return (
        all(query[name] in (None, facts[name]) for name in ("model", "label", "session_id", "collection_id"))
        and {tag.lower() for tag in query["tags"]} <= set(facts["tags"])
        and set(split_words(query["text"] or "")) <= set(facts["prompt"].split())
        and (query["since"] is None or image.created >= query["since"])
        and (query["until"] is None or image.created < query["until"])
    )


async def test_what_does_not_exist_is_an_empty_page(store: Store) -> None:
    await record(store, tags=["a"], prompt="red")
    late = time.time() + 1000
    for query in (
        {"model": "\0"},
        {"label": "x"},
        {"tags": ["b"]},
        {"collection_id": "\ud800"},
        {"session_id": "x"},
        {"text": "blue"},
        {"since": late},
        {"until": 1.0},
    ):
        assert await ids(store, **query) == [], query
    assert len(await ids(store, text="...", until=late)) == 1


PICTURES = int(os.environ.get("STORE_PICTURES", "4000"))


async def test_pages_of_many_pictures(store: Store) -> None:
    """A page of 50 within 50 ms of an idle machine, whatever the filter, also with STORE_PICTURES=100000; here, CPU time."""
    await fill(store, PICTURES)
    groups = await store.sessions.page("ann")
    boxes = await store.collections.page("ann")
    rare, often = groups[0].id, groups[1].id
    start = (await store.images.page("ann", limit=1))[0].created
    queries: list[dict[str, Any]] = [
        {},
        {"model": "m1"},
        {"label": "l3"},
        {"label": "rare"},
        {"session_id": rare},
        {"session_id": often},
        {"tags": ["t1"]},
    ]
    queries += [
        {"tags": ["rare"]},
        {"tags": ["t1", "t2"]},
        {"text": "face"},
        {"text": "rare"},
        {"text": "face hair rare"},
        {"collection_id": boxes[0].id},
    ]
    queries += [
        {"since": start - 0.9 * PICTURES, "until": start - 0.89 * PICTURES},
        {"until": start - 0.99 * PICTURES},
        {"text": "face", "since": start - 5, "tags": ["t1"]},
    ]
    queries += [
        {"model": "m1", "label": "l3", "text": "face w7", "tags": ["t1"], "session_id": often},
        {"tags": ["t1"], "label": "rare"},
        {"text": "w3 w8"},
        {"starred": True},
        {"starred": True, "text": "w3", "tags": ["t1"]},
        {"starred": False, "label": "rare"},
    ]
    slow, waited = {}, {}
    for query in queries:
        for before in (None, PICTURES // 2):
            taken, watched = [], []
            for _ in range(3):
                begun, seen = time.process_time(), time.perf_counter()  # SQLite's work is in the first, PostgreSQL's is not
                await store.images.page("ann", Query(**query), before)
                taken.append(time.process_time() - begun)
                watched.append(time.perf_counter() - seen)
            slow[f"{query} before {before}"] = round(1000 * min(taken), 1)
            waited[f"{query} before {before}"] = round(1000 * min(watched), 1)
    for name, told in (("CPU", slow), ("wall", waited)):
        print(f"{name} ms, median {statistics.median(told.values())}:", sorted(told.items(), key=lambda item: -item[1])[:8])
    assert max(slow.values()) < 80, slow


async def fill(store: Store, total: int) -> None:
    """Pictures one second apart, written as rows: half of them have the tag t1, one in a thousand the tag and word "rare"."""
    seed = 3
    draw = random.Random(seed)
    blob = await store.blobs.create("ann", "image/png", b"x")
    for name in ("often", "rare"):
        await store.sessions.create("ann", name)
    box = await store.collections.create("ann", "box")
    async with store.database.write() as connection:
        names = ["rare", "face", "hair", *(f"w{n}" for n in range(20))]
        await connection.execute(
            sa.insert(tags), [{"number": n, "owner": "ann", "name": name} for n, name in enumerate(["rare", "t1", "t2"])]
        )
        await connection.execute(sa.insert(words), [{"number": n, "owner": "ann", "name": name} for n, name in enumerate(names)])
        row = {"owner": "ann", "kind": "generate", "width": 64, "height": 64, "recipe": {"text": "x" * 300}, "blob_id": blob.id, "seed": 1}
        begin = time.time() - total
        numbers = dict((await connection.execute(sa.select(sessions.c.name, sessions.c.number))).all())
        for low in range(1, total + 1, 5000):
            block = range(low, min(low + 5000, total + 1))
            rare = {n: n % 1000 == 7 for n in block}
            await connection.execute(
                sa.insert(images),
                [
                    {
                        **row,
                        "number": n,
                        "id": f"{n:032x}",
                        "model": f"m{n % 3}",
                        "label": "rare" if rare[n] else f"l{n % 10}",
                        "session": numbers["rare" if rare[n] else "often"],
                        "prompt": "a face with hair",
                        "created": begin + n,
                        "starred": n % 50 == 0,
                    }
                    for n in block
                ],
            )
            links: list[tuple[sa.Table, list[dict[str, int]]]] = [
                (image_tags, [{"tag": tag, "image": n} for n in block for tag in (0, 1, 2) if (rare[n], n % 2 == 0, n % 3 == 0)[tag]]),
                (image_words, [{"word": w, "image": n} for n in block for w in {1, 2, draw.randrange(3, 23), 0 if rare[n] else 1}]),
                (image_collections, [{"collection": box.number, "image": n} for n in block if n % 5 == 0]),
            ]
            for table, found in links:
                await connection.execute(sa.insert(table), found)
    if not store.database.sqlite:
        async with store.database.write() as connection:
            await connection.execute(sa.text("ANALYZE"))  # as PostgreSQL does by itself, a minute later
    assert await count(store, images) == total
    assert await count(store, blobs) == 1
