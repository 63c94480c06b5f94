"""While the queue is known to be full, requests are refused before anything is done for them."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from api.access import Entry
from api.app import ROUTERS, create_app
from api.conf import ConcurrencyConf, LimitConf, load_config
from api.errors import Busy
from api.limits import Limits
from api.server import Server
from api.shedding import find_computing
from guni.protocol import Protocol
from tests import redises
from tests.checkpoints import tiny_precure
from tests.serving import inside, write_config


async def fill(
    limits: Limits, count: int, group: asyncio.TaskGroup, more: int | None = None
) -> list[tuple[asyncio.Event, asyncio.Task[None]]]:
    """Requests that hold a place until their event is set, so many or ``more``; ``count`` then do."""

    async def hold(event: asyncio.Event) -> None:
        async with limits.admit(None):
            await event.wait()

    events = [asyncio.Event() for _ in range(count if more is None else more)]
    found = [(event, group.create_task(hold(event))) for event in events]
    while len(limits.waiters) < count or len(limits.waiting) < count - 1:
        await asyncio.sleep(0.01)
    return found


async def leave(held: Sequence[tuple[asyncio.Event, asyncio.Task[None]]]) -> None:
    for event, task in held:
        event.set()
        await task


def conf(line: int) -> LimitConf:
    return LimitConf(concurrency=ConcurrencyConf(enabled=True, max_concurrency=1, max_queue=line))


def asks(limits: Limits) -> bool:
    """Whether somebody who comes now asks for a place."""
    if limits.full() is not None:
        return False
    limits.take_chance()
    return True


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
            assert asks(limits)
            await refuse(limits)
            assert not asks(limits)
            await leave(held[:2])
            assert [asks(limits) for _ in range(3)] == [True, True, False]
            held += await fill_again(limits, group)
            assert not asks(limits), "somebody waits"
            await leave(held[2:])
            asks(limits)
            (last,) = await fill_again(limits, group)
            assert [asks(limits) for _ in range(9)] == [True] * 9, "nobody waits"
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
            assert not asks(limits)
            assert limits.crowd is not None
            limits.crowd.probe = 0.0
            assert limits.full() is None, "to look whether it may ask is not to ask"
            assert asks(limits)
            assert not asks(limits)
            for event, _ in held:
                event.set()
        await limits.close()

    asyncio.run(run())


def test_who_takes_the_last_place_has_looked(tmp_path: Path) -> None:
    async def run() -> None:
        limits = await Limits.open(conf(3), tmp_path)
        async with asyncio.TaskGroup() as group:
            held = await fill(limits, 4, group)
            await refuse(limits)
            await leave(held[:2])
            assert limits.crowd is not None
            looks = []
            for _ in range(2):
                assert asks(limits)
                look = limits.crowd.probe
                held += await fill(limits, len(limits.waiters) + 1, group, 1)
                looks.append(limits.crowd.probe != look)
            assert looks == [False, True], "after the first there is another place"
            assert not asks(limits)
            for event, _ in held:
                event.set()
        await limits.close()

    asyncio.run(run())


def test_as_many_are_let_in_at_once_as_may_ask(tmp_path: Path) -> None:
    """Many heads are read in one turn of the event loop; none of those who sent them has asked by then."""

    async def run() -> None:
        limits = await Limits.open(conf(4), tmp_path)
        async with asyncio.TaskGroup() as group:
            held = await fill(limits, 5, group)
            await refuse(limits)
            await leave(held[:2])
            assert [limits.let_in() is None for _ in range(4)] == [True, True, False, False]
            for _ in range(2):
                limits.arrive()
                assert asks(limits)
            assert limits.let_in() is not None
            assert limits.crowd is not None
            limits.crowd.probe = 0.0
            assert [limits.let_in() is None for _ in range(2)] == [True, True], "whoever was let in for a look is long overdue"
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
            assert asks(limits)
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


def at_door(server: Server) -> Sequence[Entry]:
    """What was refused there, and has not been told yet: what comes further takes time."""
    return [entry for entry in server.book.entries if entry.status == Busy.status and not entry.seconds]


WAYS = ["POST /plain/generate?seed=1", "GET /plain/image?seed=1", "POST /v1/images/generations"]


def test_the_door_says_what_the_layers_behind_it_would(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is asked only by our own protocol, and passes on what has something unusual about it; that is refused by all layers in turn."""
    monkeypatch.setattr("api.access.MOMENT", 600.0)

    async def run() -> None:
        async with asyncio.timeout(120), listening(small(tmp_path)) as (port, state):
            server = state["server"]
            async with asyncio.TaskGroup() as group:
                held = await fill(server.limits, 5, group)
                await refuse(server.limits)
                for way in WAYS:
                    quick = await talk(port, way, "X-Request-ID: quick")
                    assert [answer.mark for answer in at_door(server)] == ["quick"]
                    server.book.write()
                    slow = await talk(port, way, "X-Request-ID: slow", "Origin: http://elsewhere")
                    assert not at_door(server)
                    assert quick.startswith(b"HTTP/1.1 503 ")
                    assert tidy(quick.replace(b"quick", b"slow")) == tidy(slow)
                made = await talk(port, WAYS[0])
                assert at_door(server)[0].mark.encode() in made
                for more in (
                    "Content-Length: 1",
                    "Transfer-Encoding: chunked",
                    "If-None-Match: x",
                    "Expect: 100-continue",
                    "Connection: close",
                ):
                    await talk(port, WAYS[0], more)
                assert len(at_door(server)) == 1
                assert (await talk(port, "GET /readyz")).startswith(b"HTTP/1.1 200 ")
                server.limits.crowd.free = 1
                assert (await talk(port, "POST /plain/generate?psi=9")).startswith(b"HTTP/1.1 422 ")
                assert (server.limits.crowd.free, server.limits.crowd.ahead) == (1, 0), "it has come, and leaves the chance to others"
                await talk(port, WAYS[0])
                assert (len(at_door(server)), server.limits.crowd.free) == (1, 0), "it is let in, to ask"
                for event, _ in held:
                    event.set()
            numbers = (await talk(port, "GET /metrics")).decode()
            assert 'stylegan_requests_total{method="GET",route="/{model_id}/image",status="503"} 2.0' in numbers
            assert 'stylegan_request_seconds_count{route="/{model_id}/image"} 2.0' in numbers

    with caplog.at_level("INFO", "api.access"):
        asyncio.run(run())
    lines = {record.fields["request_id"]: record for record in caplog.records if record.name == "api.access"}  # type: ignore[attr-defined]
    told = [{**lines[name].fields, "request_id": "", "ms": 0} for name in ("quick", "slow")]  # type: ignore[attr-defined]
    assert told[0] == told[1]
    assert 0 < lines["slow"].created - lines["quick"].created < 60


def test_the_last_refusals_are_counted_though_the_server_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api.access.MOMENT", 600.0)

    async def run() -> None:
        async with asyncio.timeout(120), listening(small(tmp_path)) as (port, state), asyncio.TaskGroup() as group:
            held = await fill(state["server"].limits, 5, group)
            await refuse(state["server"].limits)
            await talk(port, WAYS[0])
            assert at_door(state["server"])
            for event, _ in held:
                event.set()
        numbers = state["server"].telemetry.expose().decode()
        assert 'stylegan_requests_total{method="POST",route="/{model_id}/generate",status="503"} 1.0' in numbers

    asyncio.run(run())


@pytest.mark.parametrize("more", [{"cache": 60.0}, None])
def test_the_door_knows_what_it_must_not_refuse(tmp_path: Path, more: dict[str, float] | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture that the hosts' cache may have; and a request whose trace has to be told."""
    monkeypatch.setattr("api.access.MOMENT", 600.0)
    cluster = {"cluster": {"redis": redises.shared().new_url(), **more}} if more else {"trace": {"url": "http://127.0.0.1:9"}}

    async def run() -> None:
        async with asyncio.timeout(120), listening(small(tmp_path, **cluster)) as (port, state), asyncio.TaskGroup() as group:
            held = await fill(state["server"].limits, 5, group)
            await refuse(state["server"].limits)
            for way in WAYS[:2]:
                assert (await talk(port, way)).startswith(b"HTTP/1.1 503 ")
            known = [answer.method for answer in at_door(state["server"])]
            assert known == (["POST"] if more else [])
            for event, _ in held:
                event.set()

    asyncio.run(run())


def small(folder: Path, **more: Any) -> Path:
    tiny_precure(folder / "plain.safetensors", levels=3)
    limit = {"concurrency": {"enabled": True, "max_concurrency": 1, "max_queue": 4}}
    return write_config(
        folder, {"plain": {"file": "plain.safetensors", "relative": True}}, {"limit": limit, "engine": {"linger": 0.2}}, **more
    )


@asynccontextmanager
async def listening(config: Path) -> AsyncIterator[tuple[int, dict[str, Any]]]:
    """The application behind our protocol in this process: its port, and what its lifespan left for the protocol."""
    app = create_app(load_config(config))
    server = uvicorn.Server(uvicorn.Config(app, port=0, http=Protocol, access_log=False, log_config=None))
    serving = asyncio.create_task(server.serve())
    try:
        while not server.started:
            await asyncio.sleep(0.01)
        yield server.servers[0].sockets[0].getsockname()[1], server.lifespan.state
    finally:
        server.should_exit = True
        await serving


async def talk(port: int, way: str, *fields: str) -> bytes:
    """The answer to a request, as it comes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write("\r\n".join((f"{way} HTTP/1.1", "Host: x", *fields, "", "")).encode())
    head = await reader.readuntil(b"\r\n\r\n")
    (length,) = (int(line[16:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length: "))
    body = await reader.readexactly(length)
    writer.close()
    return head + body


def tidy(answer: bytes) -> tuple[bytes, set[bytes], bytes]:
    head, _, body = answer.partition(b"\r\n\r\n")
    status, *fields = head.split(b"\r\n")
    return status, {field for field in fields if not field.startswith(b"date: ")}, body


def test_refusals_are_noted_within_a_moment(tmp_path: Path) -> None:
    async def run() -> None:
        async with asyncio.timeout(120), listening(small(tmp_path)) as (port, state), asyncio.TaskGroup() as group:
            held = await fill(state["server"].limits, 5, group)
            await refuse(state["server"].limits)
            for count in ("1.0", "2.0"):
                await talk(port, WAYS[0])
                while state["server"].book.entries:
                    await asyncio.sleep(0.01)
                numbers = (await talk(port, "GET /metrics")).decode()
                assert f'stylegan_requests_total{{method="POST",route="/{{model_id}}/generate",status="503"}} {count}' in numbers
            for event, _ in held:
                event.set()

    asyncio.run(run())
