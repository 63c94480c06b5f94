"""The bell over Redis: heard by other hosts, and not missed when it falls silent."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from api.store.bell import ListenBell
from api.store.pubsub import RedisBell
from api.store.store import Store
from api.store.transitions import Task
from tests import redises
from tests.databases import new_url
from tests.redises import RedisServer


async def heard(store: Store, other: Store) -> Task:
    """The task that ``store`` waits for and ``other`` makes."""
    waiting = asyncio.create_task(store.queue.next("w", 30))
    async with asyncio.timeout(60):
        while not waiting.done():  # the first may ring before anybody listens
            await other.tasks.create("ann", "x", {})
            await asyncio.wait([waiting], timeout=0.5)
    claim = await waiting
    assert claim is not None
    return claim.task


def test_other_hosts_hear_it(tmp_path: Path) -> None:
    url = redises.shared().new_url()

    async def act() -> None:
        async with (
            await Store.open(tmp_path, bell=RedisBell(url)) as store,
            await Store.open(tmp_path, bell=RedisBell(url)) as other,
        ):
            store.bell.poll = 1e6  # so that only the bell can tell
            assert (await heard(store, other)).owner == "ann"
            async with other.events.awake(), asyncio.timeout(60):
                number = other.bell.count("events")
                await store.tasks.create("ann", "x", {})
                await other.bell.wait("events", number, 1e6)

    asyncio.run(act())


def test_postgresql_is_heard_after_a_while_of_silence(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    url = new_url("postgresql")

    async def act() -> None:
        async with await Store.open(tmp_path, url) as store, await Store.open(tmp_path, url) as other:
            for one in (store, other):
                assert isinstance(one.bell, ListenBell)
                one.bell.beat = 0.05
                one.bell.poll = 1e6  # so that only the bell can tell
                one.bell.news.set()
            await asyncio.sleep(0.5)
            assert (await heard(store, other)).owner == "ann"

    asyncio.run(act())
    assert "no notifications" not in caplog.text


def test_an_outage_costs_a_look_and_no_news(tmp_path: Path) -> None:
    server = RedisServer()

    async def act() -> None:
        url = f"unix://{server.socket}"
        async with (
            await Store.open(tmp_path, bell=RedisBell(url)) as store,
            await Store.open(tmp_path, bell=RedisBell(url)) as other,
        ):
            assert (await heard(store, other)).owner == "ann"  # there is none yet
            await asyncio.to_thread(server.start)
            assert (await heard(store, other)).owner == "ann"
            await asyncio.to_thread(server.kill)
            assert (await heard(store, other)).owner == "ann"
            await asyncio.to_thread(server.start)
            store.bell.poll = 1e6
            assert (await heard(store, other)).owner == "ann"

    try:
        asyncio.run(act())
    finally:
        server.stop()
