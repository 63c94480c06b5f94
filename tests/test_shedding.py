"""While the queue is known to be full, requests are refused before anything is done for them."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import httpx
import pytest
from starlette.types import Receive, Scope, Send

from api.app import create_app
from api.conf import ConcurrencyConf, LimitConf, load_config
from api.errors import Busy
from api.limits import Limits
from tests.checkpoints import tiny_precure
from tests.serving import write_config


def test_a_full_queue_is_believed_until_half_of_it_has_left(tmp_path: Path) -> None:
    async def run() -> None:
        conf = LimitConf(concurrency=ConcurrencyConf(enabled=True, max_concurrency=1, max_queue=4))
        limits = await Limits.open(conf, tmp_path)
        over = [asyncio.Event() for _ in range(5)]

        async def hold(event: asyncio.Event) -> None:
            async with limits.admit(None):
                await event.wait()

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(hold(event)) for event in over]
            while len(limits.waiters) < 5:
                await asyncio.sleep(0.01)
            assert limits.full() is None
            with pytest.raises(Busy) as refused:
                await limits.admit(None).__aenter__()
            limits.lately.until += 60  # type: ignore[union-attr]
            full = limits.full()
            assert full is not None
            assert full.retry_after == refused.value.retry_after
            for place, event in enumerate(over):
                assert (limits.full() is None) == (place >= 2)
                event.set()
                await tasks[place]
        await limits.close()

    asyncio.run(run())


def test_a_full_queue_is_not_believed_for_long(tmp_path: Path) -> None:
    async def run() -> None:
        conf = LimitConf(concurrency=ConcurrencyConf(enabled=True, max_concurrency=1, max_queue=2))
        limits = await Limits.open(conf, tmp_path)
        limits.note_full(Busy())
        assert limits.full() is not None
        end = time.monotonic() + 10
        while limits.full() is not None:
            assert time.monotonic() < end
            await asyncio.sleep(0.01)
        await limits.close()

    asyncio.run(run())


def test_without_a_queue_every_request_asks(tmp_path: Path) -> None:
    """A place that another process gives back is free at once."""

    async def run() -> None:
        limits = await Limits.open(LimitConf(concurrency=ConcurrencyConf(enabled=True, max_concurrency=1, max_queue=0)), tmp_path)
        async with limits.admit(None):
            with pytest.raises(Busy):
                await limits.admit(None).__aenter__()
            assert limits.full() is None
        await limits.close()

    asyncio.run(run())


def test_refusals_in_a_hurry_say_the_same(tmp_path: Path) -> None:
    tiny_precure(tmp_path / "plain.safetensors", levels=3)
    limit = {"concurrency": {"enabled": True, "max_concurrency": 1, "max_queue": 2}}
    models = {"plain": {"file": "plain.safetensors", "relative": True}}
    app = create_app(load_config(write_config(tmp_path, models, {"limit": limit, "engine": {"linger": 0.2}})))

    async def run() -> None:
        async with app.router.lifespan_context(app) as state, asyncio.timeout(120):
            assert state is not None

            async def serve(scope: Scope, receive: Receive, send: Send) -> None:
                await app({**scope, "state": dict(state)}, receive, send)

            async with httpx.AsyncClient(transport=httpx.ASGITransport(serve), base_url="http://server") as client:
                await check(client, state["server"].limits)

    asyncio.run(run())


async def check(client: httpx.AsyncClient, limits: Limits) -> None:
    etag = (await client.get("/plain/image?seed=1")).headers["etag"]
    asking: Sequence[Callable[[], Awaitable[httpx.Response]]] = (
        functools.partial(client.post, "/plain/generate?seed=1"),
        functools.partial(client.post, "/v1/images/generations", json={"prompt": "x", "model": "plain"}),
        functools.partial(client.get, "/plain/image?seed=1"),
    )
    over = asyncio.Event()

    async def hold() -> None:
        async with limits.admit("192.0.2.1"):
            await over.wait()

    async with asyncio.TaskGroup() as group:
        for _ in range(3):
            group.create_task(hold())
        while len(limits.waiters) < 3:
            await asyncio.sleep(0.01)
        told = [await ask() for ask in asking]
        assert [(answer.status_code, "ratelimit" in answer.headers) for answer in told] == [(503, True)] * 3
        assert limits.lately is not None
        limits.lately.until += 600
        hurried = [await ask() for ask in asking]
        assert [(answer.status_code, "ratelimit" in answer.headers) for answer in hurried] == [(503, False)] * 3
        assert [answer.json() for answer in hurried] == [answer.json() for answer in told]
        assert [answer.headers["retry-after"] for answer in hurried] == [answer.headers["retry-after"] for answer in told]
        assert all(answer.headers["x-request-id"] for answer in hurried)
        assert (await client.get("/plain/image?seed=1", headers={"If-None-Match": etag})).status_code == 304
        assert (await client.get("/readyz")).status_code == 200
        limits.lately = None
        assert "ratelimit" in (await asking[0]()).headers, "the limits are asked again"
        limits.lately = None
        over.set()
    assert [(await ask()).status_code for ask in asking] == [200] * 3
    lines = (await client.get("/metrics")).text.splitlines()
    refused = [line for line in lines if line.startswith("stylegan_requests_total") and 'status="503"' in line]
    assert sorted(line.rsplit(" ", 1)[1] for line in refused) == ["2.0", "2.0", "3.0"]
    assert not any('route="other"' in line for line in refused)
    assert 'stylegan_refusals_total{error="server_busy"} 7.0' in lines
