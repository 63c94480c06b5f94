"""While the queue is known to be full, requests are refused before anything is done for them."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import httpx
import pytest

from api.app import ROUTERS
from api.conf import ConcurrencyConf, LimitConf
from api.errors import Busy
from api.limits import Limits
from api.shedding import find_computing
from tests import redises
from tests.checkpoints import tiny_precure
from tests.serving import inside, write_config


async def fill(limits: Limits, count: int, group: asyncio.TaskGroup) -> list[tuple[asyncio.Event, asyncio.Task[None]]]:
    """Requests that hold a place until their event is set."""

    async def hold(event: asyncio.Event) -> None:
        async with limits.admit(None):
            await event.wait()

    events = [asyncio.Event() for _ in range(count)]
    found = [(event, group.create_task(hold(event))) for event in events]
    while len(limits.waiters) < count or len(limits.waiting) < count - 1:
        await asyncio.sleep(0.01)
    return found


def conf(line: int) -> LimitConf:
    return LimitConf(concurrency=ConcurrencyConf(enabled=True, max_concurrency=1, max_queue=line))


async def refuse(limits: Limits) -> None:
    with pytest.raises(Busy):
        await limits.admit(None).__aenter__()
    if limits.crowd is not None:
        limits.crowd.probe += 600


def test_as_many_may_ask_as_have_left(tmp_path: Path) -> None:
    async def run() -> None:
        limits = await Limits.open(conf(4), tmp_path)
        async with asyncio.TaskGroup() as group:
            held = await fill(limits, 5, group)
            assert limits.full() is None
            await refuse(limits)
            assert limits.full() is not None
            for event, task in held[:2]:
                event.set()
                await task
            assert [limits.full() is None for _ in range(3)] == [True, True, False]
            held += await fill_again(limits, group)
            assert limits.full() is not None, "somebody waits"
            for event, task in held[2:]:
                event.set()
                await task
            limits.full()
            (last,) = await fill_again(limits, group)
            assert [limits.full() for _ in range(9)] == [None] * 9, "nobody waits"
            for event, _ in (*held, last):
                event.set()
        await limits.close()

    async def fill_again(limits: Limits, group: asyncio.TaskGroup) -> list[tuple[asyncio.Event, asyncio.Task[None]]]:
        known = set(limits.waiters)
        event, admitted = asyncio.Event(), asyncio.Event()

        async def hold() -> None:
            async with limits.admit(None):
                admitted.set()
                await event.wait()

        task = group.create_task(hold())
        while set(limits.waiters) <= known or not (admitted.is_set() or limits.waiting):
            await asyncio.sleep(0.01)
        return [(event, task)]

    asyncio.run(run())


def test_now_and_then_one_may_ask_anyway(tmp_path: Path) -> None:
    """Another process may have made room."""

    async def run() -> None:
        limits = await Limits.open(conf(2), tmp_path)
        async with asyncio.TaskGroup() as group:
            held = await fill(limits, 3, group)
            await refuse(limits)
            assert limits.full() is not None
            assert limits.crowd is not None
            limits.crowd.probe = 0.0
            assert limits.full() is None
            assert limits.full() is not None
            for event, _ in held:
                event.set()
        await limits.close()

    asyncio.run(run())


def test_without_a_queue_every_request_asks(tmp_path: Path) -> None:
    """A place that another process gives back is free at once."""

    async def run() -> None:
        limits = await Limits.open(conf(0), tmp_path)
        async with limits.admit(None):
            await refuse(limits)
            assert limits.full() is None
        await limits.close()

    asyncio.run(run())


def test_only_what_asks_the_limits_is_refused_in_a_hurry() -> None:
    found = set(find_computing(ROUTERS, ["faces", "glyphs"]))
    assert {("POST", "/faces/generate"), ("GET", "/glyphs/image"), ("POST", "/text2img/"), ("GET", "/txt2img"), ("POST", "/task")} < found
    assert {("POST", "/v1/images/edits"), ("POST", "/images/import")} < found
    assert not found & {
        ("POST", "/none/generate"),
        ("GET", "/faces/directions"),
        ("GET", "/v1/models"),
        ("GET", "/models/"),
        ("POST", "/blob"),
    }


def test_refusals_in_a_hurry_say_the_same(tmp_path: Path) -> None:
    tiny_precure(tmp_path / "plain.safetensors", levels=3)
    limit = {"concurrency": {"enabled": True, "max_concurrency": 1, "max_queue": 4}}
    models = {"plain": {"file": "plain.safetensors", "relative": True}}
    config = write_config(tmp_path, models, {"limit": limit, "engine": {"linger": 0.2}})

    async def run() -> None:
        async with asyncio.timeout(120), inside(config) as (client, server):
            await check(client, server.limits)

    asyncio.run(run())


async def check(client: httpx.AsyncClient, limits: Limits) -> None:
    etag = (await client.get("/plain/image?seed=1")).headers["etag"]
    asking: Sequence[Callable[[], Awaitable[httpx.Response]]] = (
        functools.partial(client.post, "/plain/generate?seed=1"),
        functools.partial(client.post, "/v1/images/generations", json={"prompt": "x", "model": "plain"}),
        functools.partial(client.get, "/plain/image?seed=1"),
    )
    async with asyncio.TaskGroup() as group:
        held = await fill(limits, 5, group)
        told = []
        for ask in asking:
            limits.crowd = None
            told.append(await ask())
        assert [(answer.status_code, "ratelimit" in answer.headers) for answer in told] == [(503, True)] * 3
        assert limits.crowd is not None
        limits.crowd.probe += 600
        hurried = [await ask() for ask in asking]
        assert [(answer.status_code, "ratelimit" in answer.headers) for answer in hurried] == [(503, False)] * 3
        assert [answer.json() for answer in hurried] == [answer.json() for answer in told]
        assert [answer.headers["retry-after"] for answer in hurried] == [answer.headers["retry-after"] for answer in told]
        assert all(answer.headers["x-request-id"] for answer in hurried)
        assert (await client.get("/plain/image?seed=1", headers={"If-None-Match": etag})).status_code == 304
        assert (await client.get("/readyz")).status_code == 200
        assert (await client.post("/none/generate")).status_code == 404
        limits.crowd.free = 1
        for _ in range(3):
            assert (await client.post("/plain/generate?psi=9")).status_code == 422, "who is not let in leaves the chance to others"
        assert "ratelimit" in (await asking[0]()).headers, "the limits are asked"
        for event, _ in held:
            event.set()
    assert [(await ask()).status_code for ask in asking] == [200] * 3
    lines = (await client.get("/metrics")).text.splitlines()
    refused = [line for line in lines if line.startswith("stylegan_requests_total") and 'status="503"' in line]
    assert sorted(line.rsplit(" ", 1)[1] for line in refused) == ["2.0", "2.0", "3.0"]
    assert not any('route="other"' in line for line in refused)
    assert 'stylegan_refusals_total{error="server_busy"} 7.0' in lines


def test_what_a_host_has_made_is_answered_however_many_wait(tmp_path: Path) -> None:
    tiny_precure(tmp_path / "plain.safetensors", levels=3)
    limit = {"concurrency": {"enabled": True, "max_concurrency": 1, "max_queue": 4}}
    models = {"plain": {"file": "plain.safetensors", "relative": True}}
    cluster = {"redis": redises.shared().new_url(), "cache": 60.0}
    config = write_config(tmp_path, models, {"limit": limit, "engine": {"linger": 0.2}}, cluster=cluster)

    async def ask(client: httpx.AsyncClient, limits: Limits) -> None:
        made = await client.get("/plain/image?seed=1")
        async with asyncio.TaskGroup() as group:
            held = await fill(limits, 5, group)
            assert (await client.get("/plain/image?seed=2")).status_code == 503
            assert limits.crowd is not None
            limits.crowd.probe += 600
            again = await client.get("/plain/image?seed=1")
            assert (again.status_code, again.content) == (200, made.content)
            assert (await client.get("/plain/image?seed=3")).status_code == 503
            assert "ratelimit" not in (await client.post("/plain/generate?seed=1")).headers, "it is refused in a hurry"
            for event, _ in held:
                event.set()

    async def run() -> None:
        async with asyncio.timeout(120), inside(config) as (client, server):
            await ask(client, server.limits)

    asyncio.run(run())
