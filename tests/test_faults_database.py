"""PostgreSQL that restarts, and a network to it that cuts, loses answers, stalls and goes dark, while tasks are posted and made."""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from api.app import create_app
from api.conf import load_config
from api.routes.tasks import write_events
from api.server import EVERYBODY
from tests.databases import cluster
from tests.faults import Proxy, Watch, draw_seed, proper, wait_for
from tests.serving import Crowd, Running, serve
from tests.test_tasks import events, write

LONG = bool(os.environ.get("LONG"))
AWAY = 20.0 if LONG else 3.0  # seconds; longer than the lease, so that all that is at work is lost
LEASE = 2.0
PICTURES = 4
Fault = Callable[[Proxy], None]


class World:
    """A server, and a network between it and its database."""

    def __init__(self, server: Running, network: Proxy) -> None:
        self.server, self.network = server, network
        self.pictures = [server.client.get(f"/plain/image?seed={seed}").content for seed in range(PICTURES)]
        self.turn = 0


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    database = cluster()
    name = database.create().partition("@/")[2].partition("?")[0]
    with Proxy(database.folder / ".s.PGSQL.5432", draw_seed()) as network:
        url = f"postgresql://{database.user}@127.0.0.1:{network.port}/{name}"
        config = write(tmp_path_factory.mktemp("database"), tasks={"lease": LEASE, "parallel": 4}, store={"url": url})
        with serve(config, workers=2) as server:
            yield World(server, network)


class Load(Crowd):
    """Clients that post tasks, each with the same key until it is accepted, and one that wants its pictures at once."""

    def __init__(self, world: World, posters: int = 3) -> None:
        super().__init__(*(partial(self.post, number) for number in range(posters)), self.generate)
        self.server = world.server
        self.accepted: list[tuple[int, str]] = []
        self.statuses: Counter[int] = Counter()
        self.improper: list[str] = []
        world.turn += 1
        self.name = f"load {world.turn}"

    def ask(self, client: httpx.Client, method: str, path: str, **options: Any) -> httpx.Response:
        answer = client.request(method, path, **options)
        self.statuses[answer.status_code] += 1
        if not proper(answer):
            self.improper.append(f"{method} {path}: {answer.status_code} {answer.headers.get('retry-after')} {answer.text[:200]}")
        return answer

    def post(self, poster: int) -> None:
        count = 0
        with httpx.Client(base_url=self.server.url, timeout=90) as client:
            while not self.stop.is_set():
                seed, headers = count % PICTURES, {"Idempotency-Key": f"{self.name}, {poster}, {count}"}
                answer = self.ask(client, "POST", "/task", json={"params_type": "generate", "seed": seed}, headers=headers)
                if answer.status_code == 201:
                    self.accepted.append((seed, answer.json()))
                    count += 1
                    self.ask(client, "GET", f"/task/{self.accepted[-1][1]}")
                self.stop.wait(0.05)

    def generate(self) -> None:
        """Needs no database, and so notices nothing."""
        with httpx.Client(base_url=self.server.url, timeout=90) as client:
            while not self.stop.is_set():
                if self.ask(client, "POST", "/plain/generate?seed=1").status_code != 200:
                    self.improper.append("generate")
                self.stop.wait(0.05)


def restart(network: Proxy) -> None:
    database = cluster()
    database.run("pg_ctl", "-D", str(database.folder / "data"), "-m", "fast", "-w", "stop")
    time.sleep(AWAY)
    database.boot()


def crash(network: Proxy) -> None:
    database = cluster()
    database.run("pg_ctl", "-D", str(database.folder / "data"), "-m", "immediate", "-w", "stop")
    database.boot()


def cuts(network: Proxy) -> None:
    for _ in range(40 if LONG else 8):
        time.sleep(network.chance.uniform(0.0, 0.3))
        network.cut()


def lost_answers(network: Proxy) -> None:
    for _ in range(20 if LONG else 5):
        network.deafen(b"COMMIT")  # which is done, and nobody knows
        time.sleep(network.chance.uniform(0.2, 0.4))
        network.mend()
        time.sleep(network.chance.uniform(0.0, 0.3))


def lasting(strike: Callable[[Proxy], None]) -> Fault:
    def fault(network: Proxy) -> None:
        strike(network)
        time.sleep(AWAY)
        network.mend()

    return fault


SHORT: dict[str, Fault] = {"restart": restart, "cuts": cuts, "lost answers": lost_answers}
RARE: dict[str, Fault] = {
    "crash": crash,
    "delays": lasting(lambda network: network.slow(0.0, 0.1)),
    "stall": lasting(Proxy.stall),
    "dark": lasting(Proxy.darken),
}


@pytest.mark.parametrize("name", [*SHORT, *(pytest.param(name, marks=pytest.mark.skipif(not LONG, reason="LONG=1")) for name in RARE)])
def test_no_accepted_task_is_lost_and_none_finished_twice(world: World, name: str) -> None:
    with Load(world) as load:
        wait_for(lambda: len(load.accepted) > 5, "tasks are accepted")
        (SHORT | RARE)[name](world.network)
        watch, before = Watch(), len(load.accepted)
        wait_for(lambda: len(load.accepted) > before + 3, "tasks are accepted again", 120)
        watch.tell(f"{name}: PostgreSQL's tasks are accepted")
    assert not load.improper, load.improper[:5]
    print(dict(load.statuses))
    for seed, task_id in load.accepted:
        told = events(world.server, task_id)
        assert [number for number, _, _ in told] == list(range(1, len(told) + 1))
        kinds = [kind for _, kind, _ in told]
        assert kinds.count("finished") == 1, told
        assert kinds[-1] == "finished"
        blob = world.server.client.get(f"/blob/{told[-1][2]['image']['blob_id']}")
        assert (blob.status_code, blob.content) == (200, world.pictures[seed])
    watch.tell(f"{name}: all {len(load.accepted)} accepted tasks are finished")
    assert len({task_id for _, task_id in load.accepted}) == len(load.accepted)


def test_a_database_that_comes_later_is_used(tmp_path: Path) -> None:
    """A server that starts while it is away says so to its clients, and works on what is there when it has come."""
    database = cluster()
    name = database.create().partition("@/")[2].partition("?")[0]
    missing = "/task/" + "0" * 32

    async def act(network: Proxy) -> None:
        url = f"postgresql://{database.user}@127.0.0.1:{network.port}/{name}"
        app = create_app(load_config(write(tmp_path, server={"engine": {"linger": 0.1}}, store={"url": url})))
        async with app.router.lifespan_context(app) as state, asyncio.timeout(60):

            async def serve(scope: Any, receive: Any, send: Any) -> None:
                await app(scope | {"state": dict(state or {})}, receive, send)

            async with httpx.AsyncClient(transport=httpx.ASGITransport(serve), base_url="http://server") as client:
                refused = await client.get(missing)
                assert (refused.status_code, proper(refused)) == (503, True)
                assert database.user not in refused.text, "what is in the TOML is not for clients"
                network.mend()
                watch = Watch()
                await (state or {})["server"].keeping.wait()  # the task worker has opened it by itself
                watch.tell("PostgreSQL that comes later is used")
                assert (await client.get(missing)).status_code == 404

    with Proxy(database.folder / ".s.PGSQL.5432") as network:
        network.fail()
        asyncio.run(act(network))


def test_event_streams_end_without_it_and_are_no_failures(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    database = cluster()
    name = database.create().partition("@/")[2].partition("?")[0]

    async def act(network: Proxy) -> None:
        url = f"postgresql://{database.user}@127.0.0.1:{network.port}/{name}"
        app = create_app(load_config(write(tmp_path, server={"engine": {"linger": 0.1}}, store={"url": url})))
        async with app.router.lifespan_context(app) as state, asyncio.timeout(60):
            server = (state or {})["server"]
            await server.keeping.wait()
            task = await (await server.store()).tasks.create(EVERYBODY, "generate", {"model": "plain", "seed": 1}, None, ())
            stream = write_events(server, task, 0)
            assert (await anext(stream)).startswith("retry")
            network.fail()
            assert not [line async for line in stream if "finished" in line]
            scope: dict[str, Any] = {
                "type": "websocket",
                "path": "/events",
                "headers": [],
                "query_string": b"",
                "subprotocols": [],
                "state": state,
            }
            told: list[Any] = []

            async def connect() -> Any:
                return {"type": "websocket.connect"}

            async def note(message: Any) -> None:
                told.append(message)

            await app(scope, connect, note)
            assert [(message["type"], message["code"]) for message in told] == [("websocket.close", 1008)]
            network.mend()

    with Proxy(database.folder / ".s.PGSQL.5432") as network:
        asyncio.run(act(network))
    assert not [record for record in caplog.records if record.name == "api.journal"]
