"""Tasks and events, on SQLite and PostgreSQL: one suite."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from api.errors import BadInput, Busy, ConfigError, Conflict, LeaseLost, NoSuchTask
from api.store import schema
from api.store.database import Database, parse_url
from api.store.queue import Claim
from api.store.store import Options, Store
from api.store.tables import events, metadata, tasks
from tests.databases import KINDS, new_url

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(params=KINDS)
def url(request: pytest.FixtureRequest) -> str | None:
    return new_url(request.param)


@pytest.fixture
async def store(url: str | None, tmp_path: Path) -> AsyncIterator[Store]:
    async with await Store.open(tmp_path, url, options=Options(max_pending=500)) as opened:
        yield opened


async def run_one(store: Store, result: dict[str, Any] | None = None) -> Claim:
    claim = await store.queue.claim("w", 30)
    assert claim is not None
    await store.queue.finish(claim, result or {})
    return claim


# --- opening


async def test_migrations_make_the_tables(store: Store) -> None:
    async with store.database.read() as connection:
        assert await connection.run_sync(lambda sync: compare_metadata(MigrationContext.configure(sync), metadata)) == []
    assert ScriptDirectory(str(schema.MIGRATIONS)).get_heads() == [schema.HEAD]


async def test_opens_again_with_what_was_stored(store: Store, url: str | None, tmp_path: Path) -> None:
    task = await store.tasks.create("ann", "txt2img", {"seed": 1})
    async with await Store.open(tmp_path, url) as again:
        assert await again.tasks.get(task.id) == task


async def test_several_open_at_once(url: str | None, tmp_path: Path) -> None:
    stores = await asyncio.gather(*(Store.open(tmp_path, url) for _ in range(6)))
    await asyncio.gather(*(store.tasks.create("ann", "x", {"n": n}) for n, store in enumerate(stores)))
    assert len(await stores[0].tasks.of_owner("ann")) == 6
    for store in stores:
        await store.close()


async def test_refuses_a_newer_database(store: Store, url: str | None, tmp_path: Path) -> None:
    async with store.database.write() as connection:
        await connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(ConfigError, match="newer"):
        await Store.open(tmp_path, url)


@pytest.mark.parametrize(
    ("bad", "told"),
    [
        ("nonsense", "not a URL"),
        ("mysql://localhost/x", "use sqlite:// or postgresql://"),
        ("sqlite://", "in memory"),
        ("postgresql://nobody:secret@127.0.0.1:1/x", "cannot be opened"),
    ],
)
async def test_bad_urls(bad: str, told: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=told) as caught:
        await Store.open(tmp_path, bad)
    assert "secret" not in str(caught.value)


async def test_downgrade(url: str | None, tmp_path: Path) -> None:
    async with await Store.open(tmp_path, url) as store, store.database.write() as connection:

        def down(sync: sa.Connection) -> list[str]:
            command.downgrade(schema.make_config(sync), "base")
            return sa.inspect(sync).get_table_names()

        assert await connection.run_sync(down) == ["alembic_version"]


async def test_an_old_database_is_migrated_with_its_data(url: str | None, tmp_path: Path) -> None:
    def first(sync: sa.Connection) -> None:
        command.upgrade(schema.make_config(sync), "0001")
        row = "'t', 'ann', 'x', '{\"seed\": 1}', '', 'pending', 0, 0, 0, 1, 5.0"
        columns = "id, owner, kind, params, fingerprint, state, turn, fence, attempts, events, created"
        sync.execute(sa.text(f"INSERT INTO tasks ({columns}) VALUES ({row})"))

    database = Database(parse_url(url, tmp_path))
    async with database.write() as connection:
        await connection.run_sync(first)
    await database.close()
    async with await Store.open(tmp_path, url) as store:
        claim = await store.queue.claim("w", 30)
        assert claim is not None
        assert claim.task.params == {"seed": 1}
        assert await store.images.page("ann") == []


async def test_lost_connections_are_made_again(tmp_path: Path) -> None:
    async with await Store.open(tmp_path, new_url("postgresql")) as store, store.events.follow_owner("ann") as stream:
        await store.tasks.create("ann", "x", {"n": 0})
        assert len(await stream.take(5)) == 1
        with contextlib.suppress(Busy):
            async with store.database.write() as connection:
                await connection.execute(
                    sa.text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()")
                )
        await store.tasks.create("ann", "x", {"n": 1})
        assert len(await stream.take(5)) == 1


# --- tasks


async def test_task_from_pending_to_finished(store: Store) -> None:
    task = await store.tasks.create("ann", "txt2img", {"prompt": "nul \0, half \ud800, smile ☺", "seed": 7})
    assert (task.state, task.attempts, task.events) == ("pending", 0, 1)
    claim = await store.queue.claim("w1", 30)
    assert claim is not None
    assert claim.task.id == task.id
    assert claim.task.params == {"prompt": "nul \0, half \ud800, smile ☺", "seed": 7}
    assert await store.queue.claim("w2", 30) is None
    await store.queue.report(claim, {"step": 1, "steps": 2})
    await store.queue.finish(claim, {"image": {"blob_id": "b"}})
    done = await store.tasks.get(task.id, "ann")
    assert (done.state, done.result, done.attempts) == ("finished", {"image": {"blob_id": "b"}}, 1)
    assert done.created <= (done.started or 0) <= (done.ended or 0)
    assert abs(done.created - time.time()) < 5
    told = await store.events.since(task.id)
    assert [event.kind for event in told] == ["pending", "started", "progress", "finished"]
    assert [event.number for event in told] == [1, 2, 3, 4]
    assert told[0].data == {"position": 0, "wait": None}
    assert told[1].data == {"attempt": 1}
    assert told[3].data == done.result
    assert await store.events.last(task.id) == told[3]
    assert await store.events.since(task.id, 2) == told[2:]


async def test_others_see_nothing(store: Store) -> None:
    task = await store.tasks.create("ann", "x", {})
    for task_id, owner in ((task.id, "bob"), ("0" * 32, "ann"), ("\0", None), (task.id + "\n", "ann"), ("\ud800" * 5000, "ann")):
        with pytest.raises(NoSuchTask):
            await store.tasks.get(task_id, owner)
        with pytest.raises(NoSuchTask):
            await store.tasks.cancel(task_id, owner)
    assert await store.tasks.of_owner("bob") == []
    assert await store.events.of_owner("bob") == []
    assert (await store.tasks.get(task.id)).state == "pending"


async def test_idempotency(store: Store) -> None:
    made = await asyncio.gather(*(store.tasks.create("ann", "x", {"a": 1, "b": 2}, "key") for _ in range(8)))
    assert len({task.id for task in made}) == 1
    assert (await store.tasks.create("ann", "x", {"b": 2, "a": 1}, "key")).id == made[0].id
    assert (await store.tasks.create("bob", "x", {"a": 1, "b": 2}, "key")).id != made[0].id
    for kind, params in (("x", {"a": 2, "b": 2}), ("y", {"a": 1, "b": 2})):
        with pytest.raises(Conflict, match="key"):
            await store.tasks.create("ann", kind, params, "key")
    assert len(await store.events.of_owner("ann")) == 1


@pytest.mark.parametrize("key", ["", "x" * 256, "new\nline", "ü"])
async def test_bad_keys(store: Store, key: str) -> None:
    with pytest.raises(BadInput):
        await store.tasks.create("ann", "x", {}, key)


async def test_params_that_json_cannot_hold(store: Store) -> None:
    for bad in ({"x": float("nan")}, {"x": {1, 2}}, {"x": b"bytes"}):
        with pytest.raises(BadInput, match="JSON"):
            await store.tasks.create("ann", "x", bad)


async def test_pages(store: Store) -> None:
    made = [(await store.tasks.create("ann", "x", {"n": n})).id for n in range(7)]
    page = await store.tasks.of_owner("ann", limit=4)
    rest = await store.tasks.of_owner("ann", before=page[-1].number, limit=4)
    assert [task.id for task in page + rest] == made[::-1]


async def test_full_queue(store: Store) -> None:
    store.tasks.max_pending = 2
    for n in range(2):
        await store.tasks.create("ann", "x", {"n": n})
    with pytest.raises(Busy, match="2 tasks"):
        await store.tasks.create("bob", "x", {})


async def test_owners_take_turns(store: Store) -> None:
    for n in range(6):
        await store.tasks.create("ann", "x", {"n": n})
    await run_one(store)
    for owner in ("bob", "bob", "eve"):
        await store.tasks.create(owner, "x", {})
    order = [(await run_one(store)).task.owner for _ in range(8)]
    assert order == ["ann", "bob", "eve", "ann", "bob", "ann", "ann", "ann"]


async def test_an_owner_s_own_tasks_come_in_order(store: Store) -> None:
    made = [(await store.tasks.create("ann", "x", {"n": n})).id for n in range(10)]
    assert [(await run_one(store)).task.id for _ in made] == made


async def test_place(store: Store) -> None:
    made = [await store.tasks.create("ann", "x", {"n": n}) for n in range(4)]
    bob = await store.tasks.create("bob", "x", {})
    assert [(await store.tasks.place(task)).position for task in [*made, bob]] == [0, 2, 3, 4, 1]
    assert (await store.events.last(bob.id)).data["position"] == 1  # type: ignore[union-attr]
    claim = await store.queue.claim("w", 30)
    assert claim is not None
    await asyncio.sleep(0.2)
    await store.queue.finish(claim, {})
    place = await store.tasks.place(made[3])
    assert place.position == 3
    assert place.wait is not None
    assert 0.6 <= place.wait < 3


# --- workers


async def test_one_task_one_worker(store: Store) -> None:
    for n in range(20):
        await store.tasks.create(f"owner{n % 3}", "x", {"n": n})
    claims = await asyncio.gather(*(store.queue.claim(f"w{n}", 30) for n in range(30)))
    got = [claim.task.id for claim in claims if claim]
    while claim := await store.queue.claim("w", 30):  # PostgreSQL may answer "none" to one who only met locked rows
        got.append(claim.task.id)
    assert len(got) == len(set(got)) == 20


async def test_lost_worker_is_shut_out(store: Store) -> None:
    task = await store.tasks.create("ann", "x", {})
    old = await store.queue.claim("w1", 0.05)
    await asyncio.sleep(0.1)
    new = await store.queue.claim("w2", 30)
    assert old is not None
    assert new is not None
    assert (new.task.id, new.task.attempts) == (task.id, 2)
    for late in (
        store.queue.renew(old),
        store.queue.report(old, {}),
        store.queue.finish(old, {}),
        store.queue.fail(old, "x"),
        store.queue.release(old),
    ):
        with pytest.raises(LeaseLost):
            await late
    await store.queue.finish(new, {"by": 2})
    with pytest.raises(LeaseLost):
        await store.queue.finish(new, {"by": 3})
    told = await store.events.since(task.id)
    assert [event.kind for event in told] == ["pending", "started", "pending", "started", "finished"]
    assert told[2].data["reason"] == "its worker was lost"
    assert told[-1].data == {"by": 2}


async def test_renewed_lease_lasts(store: Store) -> None:
    await store.tasks.create("ann", "x", {})
    claim = await store.queue.claim("w1", 0.4)
    assert claim is not None
    for _ in range(4):
        await asyncio.sleep(0.2)
        await store.queue.renew(claim)
        assert await store.queue.claim("w2", 30) is None
    await store.queue.finish(claim, {})


async def test_task_that_kills_workers_fails(store: Store) -> None:
    task = await store.tasks.create("ann", "x", {})
    for attempt in range(1, 4):
        claim = await store.queue.claim("w", 0.01)
        assert claim is not None
        assert claim.task.attempts == attempt
        await asyncio.sleep(0.03)
    assert await store.queue.claim("w", 0.01) is None
    failed = await store.tasks.get(task.id)
    assert failed.state == "failed"
    assert "3 workers" in (failed.reason or "")


async def test_released_task_keeps_its_attempts(store: Store) -> None:
    first, _ = [await store.tasks.create("ann", "x", {"n": n}) for n in range(2)]
    for _ in range(5):
        claim = await store.queue.claim("w", 30)
        assert claim is not None
        assert (claim.task.id, claim.task.attempts) == (first.id, 1)
        await store.queue.release(claim)


async def test_fail(store: Store) -> None:
    task = await store.tasks.create("ann", "x", {})
    claim = await store.queue.claim("w", 30)
    assert claim is not None
    await store.queue.fail(claim, "bad \0 picture \ud800")
    assert (await store.tasks.get(task.id)).reason == "bad  picture ?"
    assert (await store.events.last(task.id)).data == {"reason": "bad  picture ?"}  # type: ignore[union-attr]


async def test_cancel_pending_and_running_and_ended(store: Store) -> None:
    first, second = [await store.tasks.create("ann", "x", {"n": n}) for n in range(2)]
    claim = await store.queue.claim("w", 30)
    assert claim is not None
    assert (await store.tasks.cancel(second.id, "ann")).state == "cancelled"
    assert (await store.tasks.cancel(first.id, "ann", "tab closed")).state == "cancelled"
    with pytest.raises(LeaseLost):
        await store.queue.finish(claim, {})
    assert await store.queue.claim("w", 30) is None
    assert (await store.tasks.cancel(first.id, "ann")).reason == "tab closed"
    told = await store.events.since(first.id)
    assert [(event.kind, event.data) for event in told[2:]] == [("cancelled", {"reason": "tab closed"})]


async def test_hold_renews_and_returns(store: Store) -> None:
    await store.tasks.create("ann", "x", {})
    claim = await store.queue.claim("w", 0.3)
    assert claim is not None

    async def work() -> int:
        for step in range(8):
            await asyncio.sleep(0.1)
            await store.queue.report(claim, {"step": step})
        return 5

    assert await store.queue.hold(claim, work()) == 5
    assert await store.queue.claim("thief", 30) is None
    await store.queue.finish(claim, {})


async def test_hold_hears_of_a_cancel(store: Store, url: str | None, tmp_path: Path) -> None:
    task = await store.tasks.create("ann", "x", {})
    claim = await store.queue.claim("w", 30)
    assert claim is not None
    stopped = asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            stopped.set()

    async with await Store.open(tmp_path, url) as other:  # its bell is not heard here, as with another process
        holding = asyncio.create_task(store.queue.hold(claim, work()))
        await asyncio.sleep(0.2)
        begun = time.perf_counter()
        await other.tasks.cancel(task.id, "ann", "enough")
        with pytest.raises(LeaseLost, match="enough"):
            await holding
    assert stopped.is_set()
    assert time.perf_counter() - begun < 10


async def test_hold_passes_errors_on(store: Store) -> None:
    await store.tasks.create("ann", "x", {})
    claim = await store.queue.claim("w", 30)
    assert claim is not None

    async def work() -> None:
        raise BadInput("no such scheduler")

    with pytest.raises(BadInput, match="scheduler"):
        await store.queue.hold(claim, work())


async def test_next_waits(store: Store, url: str | None, tmp_path: Path) -> None:
    waiting = asyncio.create_task(store.queue.next("w", 30))
    await asyncio.sleep(0.15)
    task = await store.tasks.create("ann", "x", {})
    assert (await asyncio.wait_for(waiting, 2)).task.id == task.id
    async with await Store.open(tmp_path, url) as other:
        waiting = asyncio.create_task(store.queue.next("w", 30))
        await asyncio.sleep(0.15)
        task = await other.tasks.create("ann", "x", {})
        assert (await asyncio.wait_for(waiting, 2)).task.id == task.id


async def test_bell_is_heard_in_other_processes(store: Store, url: str | None, tmp_path: Path) -> None:
    store.bell.poll = 60.0  # so that only the bell can tell in time
    waiting = asyncio.create_task(store.queue.next("w", 30))
    async with await Store.open(tmp_path, url) as other:
        for n in range(10):  # the first may ring before anybody listens
            await other.tasks.create("ann", "x", {"n": n})
            await asyncio.wait([waiting], timeout=0.5)
            if waiting.done():
                break
    assert (await asyncio.wait_for(waiting, 0)).task.owner == "ann"


async def test_also_is_in_the_same_transaction(store: Store) -> None:
    task = await store.tasks.create("ann", "x", {})
    claim = await store.queue.claim("w", 30)
    assert claim is not None

    async def bad(connection: Any) -> None:
        await connection.execute(sa.update(tasks).values(owner="changed"))
        raise BadInput("no")

    with pytest.raises(BadInput):
        await store.queue.finish(claim, {}, also=bad)
    after = await store.tasks.get(task.id)
    assert (after.owner, after.state, after.events) == ("ann", "running", 2)


async def test_cancelled_callers_leave_the_database_usable(store: Store) -> None:
    seed = 5
    print("seed", seed)
    draw = random.Random(seed)
    for n in range(60):
        caller = asyncio.create_task(store.tasks.create("ann", "x", {"n": n}))
        await asyncio.sleep(draw.random() * 0.01)
        caller.cancel()
        await asyncio.gather(caller, return_exceptions=True)
    made = await store.tasks.of_owner("ann", limit=100)
    told = await store.events.of_owner("ann")
    assert {task.id for task in made} == {event.task_id for event in told}
    assert len(told) == len(made)
    await store.tasks.create("ann", "x", {"n": "last"})


async def test_a_worker_that_leaves_while_it_takes_a_task_leaves_the_task(store: Store) -> None:
    """Whenever that is: nobody waits for the lease of a worker that has never known of it."""
    await store.tasks.create("ann", "x", {})
    for turns in itertools.count():
        taking = asyncio.create_task(store.queue.claim("leaves", 60))
        for _ in range(turns):
            await asyncio.sleep(0.0005)
        taken = not taking.cancel()
        await asyncio.gather(taking, return_exceptions=True)
        if taken:
            break
        claim = await store.queue.claim("stays", 60)
        assert claim is not None, f"the task is lost for a minute by a cancel after {turns / 2} ms"
        assert claim.task.attempts == 1
        await store.queue.release(claim)
    assert turns > 3


# --- events


async def test_follow_replays_and_goes_on_and_ends(store: Store) -> None:
    task = await store.tasks.create("ann", "x", {})
    claim = await store.queue.claim("w", 30)
    assert claim is not None

    async def read(since: int) -> list[int]:
        async with store.events.follow(task.id, since) as stream:
            return [event.number async for event in stream]

    readers = [asyncio.create_task(read(since)) for since in (0, 1, 2, 3)]
    await asyncio.sleep(0.1)
    for step in range(3):
        await store.queue.report(claim, {"step": step})
    await store.queue.finish(claim, {})
    assert await asyncio.wait_for(asyncio.gather(*readers), 5) == [[1, 2, 3, 4, 5, 6], [2, 3, 4, 5, 6], [3, 4, 5, 6], [4, 5, 6]]
    assert await asyncio.wait_for(asyncio.gather(*(read(since) for since in (0, 5, 6, 99))), 5) == [[1, 2, 3, 4, 5, 6], [6], [], []]
    assert store.events.feed.running is None


async def test_follow_owner_sees_other_processes_events(store: Store, url: str | None, tmp_path: Path) -> None:
    old = await store.tasks.create("ann", "x", {"n": 0})
    async with store.events.follow_owner("ann") as new, store.events.follow_owner("ann", 0) as everything:
        assert await new.take(0.05) == []
        async with await Store.open(tmp_path, url) as other:
            await other.tasks.create("bob", "x", {})
            task = await other.tasks.create("ann", "x", {"n": 1})
        assert [event.task_id for event in await new.take(5)] == [task.id]
        got = await everything.take(5)
        while len(got) < 2:
            got += await everything.take(5)
    assert [event.task_id for event in got] == [old.id, task.id]


async def test_slow_reader_misses_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api.store.feed.BACKLOG", 5)
    monkeypatch.setattr("api.store.feed.PAGE", 7)
    task = await store.tasks.create("ann", "x", {})
    claim = await store.queue.claim("w", 30)
    assert claim is not None
    async with store.events.follow(task.id) as stream, store.events.follow_owner("ann") as owner:
        for step in range(40):
            await store.queue.report(claim, {"step": step})
        await asyncio.sleep(0.3)
        await store.queue.finish(claim, {})
        got: list[int] = []
        while not stream.over:
            got += [event.number for event in await stream.take(5)]
        assert got == list(range(1, 44))
        late: list[int] = []
        while len(late) < 41:
            fresh = await owner.take(5)
            assert fresh
            late += [event.number for event in fresh]
        assert late == list(range(3, 44))


async def test_take_that_is_cut_short_loses_nothing(store: Store) -> None:
    task = await store.tasks.create("ann", "x", {})
    async with store.events.follow(task.id) as stream:
        for delay in (0.0, 0.0001, 0.001, 0.002, 0.004):
            if got := await stream.take(delay):
                break
        got = got or await stream.take(5)
        assert [event.number for event in got] == [1]


async def test_hundred_streams_share_one_look(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    made = [await store.tasks.create("ann", "x", {"n": n}) for n in range(20)]
    streams = [store.events.follow(task.id, 1) for task in made * 5]
    for stream in streams:
        await stream.__aenter__()
        assert await stream.take(0.0) == []
    await asyncio.gather(*(stream.take(0.3) for stream in streams))
    looks = 0
    execute = store.read_events

    async def count_looks(after: int, limit: int) -> Any:
        nonlocal looks
        looks += 1
        return await execute(after, limit)

    monkeypatch.setattr(store.events.feed, "read", count_looks)
    waiting = [asyncio.create_task(stream.take(10)) for stream in streams]
    for _ in range(20):
        await run_one(store)
    assert all(await asyncio.gather(*waiting))
    for stream in streams:
        await stream.__aexit__()
    assert 0 < looks <= 120


async def test_ids_are_committed_in_order(store: Store, url: str | None, tmp_path: Path) -> None:
    seen: list[int] = []

    async def watch() -> None:
        last = 0
        while len(seen) < 50:
            for event in await store.events.of_owner("ann", last):
                seen.append(event.id)
                last = event.id

    async with await Store.open(tmp_path, url) as other:
        watching = asyncio.create_task(watch())
        await asyncio.gather(*((store, other)[n % 2].tasks.create("ann", "x", {"n": n}) for n in range(50)))
        await asyncio.wait_for(watching, 10)
    assert seen == sorted(seen)


# --- sweeping


async def test_sweep_deletes_ended_tasks_in_small_batches(store: Store) -> None:
    store.queue.keep = 0.0
    for n in range(5):
        await store.tasks.create("ann", "x", {"n": n})
    for _ in range(4):
        await run_one(store)
    await asyncio.sleep(0.02)
    assert [await store.tasks.sweep(3) for _ in range(3)] == [3, 1, 0]
    assert [task.state for task in await store.tasks.of_owner("ann")] == ["pending"]
    async with store.database.read() as connection:
        assert await connection.scalar(sa.select(sa.func.count()).select_from(events)) == 1
    await store.sweep()
