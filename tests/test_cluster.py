"""Two hosts as one server: two servers with folders of their own and one Redis. And one machine, which needs none of it."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from msgspec.structs import replace

from api.cache import LARGEST, Cache
from api.engine.wire import Bye, Picture, pack
from tests import objects, redises
from tests.checkpoints import tiny_precure
from tests.databases import new_url
from tests.redises import RedisServer
from tests.serving import ROOT, Running, serve, write_config

RATE = {"rate": {"enabled": True, "max_request": 3}}
EVERY_LIMIT = RATE | {"block": {"enabled": True}, "concurrency": {"enabled": True}}


def host(folder: Path, redis: str, **root: Any) -> Path:
    """A host's configuration, in a folder of its own."""
    folder.mkdir()
    tiny_precure(folder / "plain.safetensors", levels=3)
    models = {"plain": {"file": "plain.safetensors", "relative": True}}
    server = {"limit": root.pop("limit", RATE), "engine": {"linger": 1.0}}
    return write_config(folder, models, server, cluster={"redis": redis, "cache": root.pop("cache", 0.0)}, **root)


def test_a_rate_holds_over_hosts(tmp_path: Path) -> None:
    url = redises.shared().new_url()
    with serve(host(tmp_path / "a", url)) as here, serve(host(tmp_path / "b", url)) as there:
        statuses = [server.client.post("/plain/generate").status_code for server in (here, there, here, there, here)]
    assert statuses == [200, 200, 200, 429, 429]


def test_a_task_of_one_host_is_made_by_another_and_fetched_from_either(tmp_path: Path) -> None:
    """Two hosts that share nothing but Redis, PostgreSQL and an object store; one of them only accepts tasks."""
    redis, database = redises.shared().new_url(), new_url("postgresql")
    shared = {"store": {"url": database}, "blobs": {"url": objects.shared().new_url(), "options": objects.shared().options}}
    front = host(tmp_path / "a", redis, tasks={"parallel": 0}, **shared)
    back = host(tmp_path / "b", redis, **shared)
    with serve(front) as here, serve(back) as there:
        task_id = here.client.post("/task", json={"params_type": "generate", "seed": 7}).json()
        with here.client.stream("GET", f"/task/{task_id}/events") as stream:
            told = [line for line in stream.iter_lines() if line.startswith("data: ")]
        blob_id = json.loads(told[-1].removeprefix("data: "))["image"]["blob_id"]
        pictures = [server.client.get(f"/blob/{blob_id}").content for server in (here, there)]
        assert pictures[0] == pictures[1] == here.client.get("/plain/image?seed=7").content


def counted(server: Running, name: str) -> float:
    """A counter of a server's metrics, over all labels."""
    lines = server.client.get("/metrics").text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"stylegan_{name}_total{{"))


def test_a_picture_is_made_by_one_host_and_answered_by_all(tmp_path: Path) -> None:
    """Also beyond the quota, which is for making pictures."""
    url = redises.shared().new_url()
    names = [f"/plain/image?seed={seed}&psi=0.7" for seed in (1, 2, 3)]
    told = ("etag", "x-seed", "x-recipe", "content-type", "cache-control")
    with serve(host(tmp_path / "a", url, cache=60.0)) as here, serve(host(tmp_path / "b", url, cache=60.0)) as there:
        made = [here.client.get(name) for name in names]
        assert [answer.status_code for answer in made] == [200] * 3
        recalled = [server.client.get(name) for name in names for server in (there, here)]
        assert (
            [answer.content for answer in recalled[::2]] == [answer.content for answer in recalled[1::2]] == [one.content for one in made]
        )
        assert [[answer.headers[key] for key in told] for answer in recalled[::2]] == [[one.headers[key] for key in told] for one in made]
        assert there.client.get("/plain/image?seed=4").status_code == 429, "the quota is spent"
        assert counted(there, "recalled") == counted(here, "recalled") == 3
        assert counted(there, "pictures") <= 1, "at most the example"


def test_a_history_has_all_its_pictures_made(tmp_path: Path) -> None:
    url = redises.shared().new_url()
    with serve(host(tmp_path / "a", url, cache=60.0, store={"history": True})) as server:
        answers = [server.client.get("/plain/image?seed=1") for _ in range(2)]
        assert answers[0].headers["x-image-id"] != answers[1].headers["x-image-id"]


def test_each_host_makes_its_own_while_redis_is_away(tmp_path: Path) -> None:
    redis = RedisServer()
    redis.start()
    try:
        with serve(host(tmp_path / "a", f"unix://{redis.socket}", cache=60.0, limit={})) as server:
            first = server.client.get("/plain/image?seed=1")
            redis.freeze()
            assert server.client.get("/plain/image?seed=1").content == first.content
            redis.thaw()
            redis.kill()
            assert server.client.get("/plain/image?seed=2").status_code == 200
            assert counted(server, "recalled") == 0
    finally:
        redis.stop()


PICTURE = Picture(data=b"bytes", mime_type="image/png", width=4, height=4, seed=3, label="a", latent=np.zeros(3, np.float32))


def with_cache(use: Callable[[Cache], Awaitable[None]], url: str, seconds: float = 60.0) -> None:
    async def main() -> None:
        cache = Cache(url, seconds)
        try:
            await use(cache)
        finally:
            await cache.close()

    asyncio.run(main())


def test_what_is_kept() -> None:
    async def use(cache: Cache) -> None:
        await cache.keep("one", PICTURE)
        assert await cache.find("one") == replace(PICTURE, latent=None)
        assert await cache.find("other") is None
        await cache.keep("large", replace(PICTURE, data=bytes(LARGEST + 1)))
        assert await cache.find("large") is None
        for junk in (b"", b"x", b"\0\0\0\1\x90", pack(Bye()), pack(PICTURE) * 2, pack(PICTURE)[:-1]):
            await cache.client.set(f"{cache.space}junk", junk)
            assert await cache.find("junk") is None

    with_cache(use, redises.shared().new_url())


def test_pictures_are_forgotten() -> None:
    async def use(cache: Cache) -> None:
        await cache.keep("one", PICTURE)
        while await cache.find("one"):
            await asyncio.sleep(0.02)

    with_cache(use, redises.shared().new_url(), seconds=0.1)


def test_a_redis_that_fails_is_left_alone_for_a_while() -> None:
    async def use(cache: Cache) -> None:
        assert await cache.find("one") is None
        assert cache.back > time.monotonic()
        redis.start()
        await cache.keep("one", PICTURE)
        assert await cache.find("one") is None
        cache.back = 0.0
        await cache.keep("one", PICTURE)
        assert await cache.find("one") is not None

    redis = RedisServer()
    try:
        with_cache(use, f"unix://{redis.socket}")
    finally:
        redis.stop()


def ask(server: Running) -> httpx.Response:
    return server.client.post("/plain/generate")


def test_without_redis_computing_is_refused_politely(tmp_path: Path) -> None:
    redis = RedisServer()
    try:
        with serve(host(tmp_path / "a", f"unix://{redis.socket}", limit=EVERY_LIMIT)) as server:
            refused = ask(server)
            assert (refused.status_code, int(refused.headers["retry-after"]) >= 1) == (503, True)
            assert server.client.get("/models/").status_code == 200
            redis.start()
            answers = [ask(server)]
            while answers[-1].status_code == 503:
                answers.append(ask(server))
            assert answers[-1].status_code == 200
            redis.kill()
            assert ask(server).status_code == 503
    finally:
        redis.stop()


# What a server of one machine has loaded when everything that it can do is on and was used.
ALONE = """
import asyncio, sys
from api.app import create_app
from api.conf import load_config

async def act():
    app = create_app(load_config(sys.argv[1]))
    async with app.router.lifespan_context(app) as state:
        server = state["server"]
        await server.store()
        async with server.limits.admit("192.0.2.1"):
            pass
    loaded = {"redis", "fsspec", "s3fs", "botocore", "ray", "grpc", "opentelemetry.sdk"} & set(sys.modules)
    open(sys.argv[2], "w").write(f"loaded {sorted(loaded)}")

asyncio.run(act())
"""


def test_one_machine_loads_nothing_of_it(tmp_path: Path) -> None:
    tiny_precure(tmp_path / "plain.safetensors", levels=3)
    models = {"plain": {"file": "plain.safetensors", "relative": True}}
    config = write_config(tmp_path, models, {"limit": EVERY_LIMIT, "engine": {"linger": 0.5}})
    subprocess.run([sys.executable, "-c", ALONE, str(config), str(tmp_path / "told")], cwd=ROOT, check=True, timeout=120)
    assert (tmp_path / "told").read_text() == "loaded []"
