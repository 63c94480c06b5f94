"""Two hosts as one server: two servers with folders of their own and one Redis. And one machine, which needs none of it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx

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
    return write_config(folder, models, server, cluster={"redis": redis}, **root)


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
