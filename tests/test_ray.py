"""Transports: one conformance for the socket's and Ray's, then a real server on a real small cluster, whose replicas die, change and grow.

What needs the cluster is for LONG=1; ``test_ray_walk.py`` has it in short.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from api.conf import Config, load_config
from api.engine.client import Engine
from api.engine.codec import Encoding
from api.engine.socket import reach
from api.engine.transport import Transport, build_transports
from api.engine.wire import Picture, Progress, Started, pack, preview_steps
from api.errors import BadArray, Busy, Expired, NoSuchLabel, Poisonous
from api.models.jobs import Generate, Project, Synthesize
from tests.checkpoints import tiny_precure
from tests.clusters import Cluster, Load, cluster, until
from tests.serving import ROOT, free_port, serve, write_config
from tests.test_gunicorn import children

pytestmark = pytest.mark.filterwarnings("ignore")  # of Ray's, inside of this process
PNG = Encoding("png")
QUEUE = 32
LONG = 2000  # steps, which take minutes on the big model
Use = Callable[[Transport], Awaitable[None]]


def api(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """A command of `python -m api`."""
    return subprocess.run([sys.executable, "-m", "api", *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, timeout=400)


@pytest.fixture(scope="module")
def ray() -> Iterator[Cluster]:
    if importlib.util.find_spec("ray") is None:
        pytest.skip("ray is not installed; see requirements-cluster.txt")
    if not os.environ.get("LONG"):
        pytest.skip("a cluster takes its time: LONG=1 runs it")
    with cluster() as made:
        yield made
        importlib.import_module("ray").shutdown()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models: one small, one whose pictures do not fit into one of Ray's messages."""
    folder = tmp_path_factory.mktemp("ray")
    tiny_precure(folder / "plain.safetensors", categories=2, levels=3)
    tiny_precure(folder / "big.safetensors", levels=8)
    return folder


def configure(folder: Path, **cluster: str) -> Path:
    models = {name: {"file": f"{name}.safetensors", "relative": True, "warmup": False} for name in ("plain", "big")}
    models["plain"]["cluster"] = {"replicas": 2, "num_cpus": 0.5}
    return write_config(
        folder, models, {"engine": {"linger": 3.0, "threads": 1, "max_batch": 8, "max_queue": QUEUE, "deadline": 150.0}}, cluster=cluster
    )


@pytest.fixture(scope="module")
def local(folder: Path) -> Config:
    return load_config(configure(folder))


@pytest.fixture(scope="module")
def remote(folder: Path, ray: Cluster) -> Path:
    """The TOML of deployed models."""
    (folder / "ray").mkdir()
    for name in ("plain", "big"):
        (folder / "ray" / f"{name}.safetensors").write_bytes((folder / f"{name}.safetensors").read_bytes())
    toml = configure(folder / "ray", engine="ray", address=ray.address)
    done = api("deploy", toml)
    assert (done.returncode, done.stdout) == (0, "deployed\n"), done.stderr
    return toml


@pytest.fixture(params=["socket", "ray"])
def config(request: pytest.FixtureRequest, local: Config) -> Config:
    return local if request.param == "socket" else load_config(request.getfixturevalue("remote"))


def engines(config: Config) -> list[int]:
    """Pids of the engine processes of a configuration."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            command = (entry / "cmdline").read_bytes() if entry.name.isdigit() else b""
            if b"api.engine.process" in command and os.fsencode(config.server.tmp_dir) in command:
                found.append(int(entry.name))
    return found


def using(config: Config, use: Use, model: str = "plain") -> None:
    async def main() -> None:
        transport = build_transports(config)[model]
        transport.open()
        try:
            async with asyncio.timeout(120):
                await transport.info(model)
                await use(transport)
        finally:
            await transport.close()

    asyncio.run(main())


def generate(transport: Transport, seed: int, model: str = "plain", **options: float) -> Awaitable[Picture]:
    return transport.run(Generate(model=model, seed=seed), client="one", encoding=PNG, **options)  # type: ignore[arg-type]


def project(steps: int, model: str = "big") -> Project:
    return Project(model=model, image=np.full((16, 16, 3), 90, np.uint8), seed=1, steps=steps, starts=1)


# Conformance: each transport does these.


def test_a_batch_equals_its_singles(config: Config) -> None:
    async def use(transport: Transport) -> None:
        together = await asyncio.gather(*(generate(transport, seed) for seed in range(24)))
        alone = [await generate(transport, seed) for seed in range(24)]
        assert [picture.data for picture in together] == [picture.data for picture in alone]

    using(config, use)


def test_big_pictures_arrive_whole(config: Config) -> None:
    async def use(transport: Transport) -> None:
        pictures = await asyncio.gather(*(generate(transport, seed, "big") for seed in range(3)))
        assert [(picture.width, picture.height, picture.seed) for picture in pictures] == [(512, 512, seed) for seed in range(3)]
        assert min(len(picture.data) for picture in pictures) > 200_000

    using(config, use, "big")


def test_errors_come_back_as_themselves(config: Config) -> None:
    async def use(transport: Transport) -> None:
        with pytest.raises(NoSuchLabel):
            await transport.run(Generate(model="plain", label="x"), client="", encoding=PNG)
        with pytest.raises(BadArray):
            await transport.run(Synthesize(model="plain", styles=np.zeros((1, 1), np.float32)), client="", encoding=PNG)
        with pytest.raises(Expired):
            await generate(transport, 1, deadline=time.monotonic() - 1)
        assert (await generate(transport, 2)).seed == 2

    using(config, use)


def test_what_takes_too_long_is_given_up(config: Config) -> None:
    async def use(transport: Transport) -> None:
        with pytest.raises(Expired):
            await transport.run(project(LONG), client="", encoding=PNG, deadline=time.monotonic() + 0.5)
        assert (await generate(transport, 2, "big")).seed == 2

    using(config, use, "big")


def test_steps_are_told_in_their_order_with_previews(config: Config) -> None:
    async def use(transport: Transport) -> None:
        told: list[Progress | Started] = []
        await transport.run(project(30, "plain"), client="", encoding=PNG, watch=told.append, previews=2)
        assert isinstance(told[0], Started)
        steps = [message for message in told[1:] if isinstance(message, Progress)]
        total = steps[0].total
        shown = [message.index for message in steps if message.preview is not None]
        assert shown == sorted(preview_steps(total, 2))
        others = [message.index for message in steps if message.preview is None]
        assert others == [index for index in range(total + 1) if index not in shown]
        assert all(message.preview[:2] == b"\xff\xd8" for message in steps if message.preview)

    using(config, use)


def test_who_leaves_ends_the_work(config: Config) -> None:
    async def use(transport: Transport) -> None:
        for _ in range(2):
            begun = asyncio.Event()
            watch = functools.partial(lambda begun, _: begun.set(), begun)
            leaving = asyncio.ensure_future(transport.run(project(LONG), client="", encoding=PNG, watch=watch))
            await begun.wait()
            leaving.cancel()
            with pytest.raises(asyncio.CancelledError):
                await leaving
        # Long jobs are done one after the other: it would wait for minutes.
        await transport.run(project(3), client="", encoding=PNG)

    using(config, use, "big")


def test_more_than_there_is_room_for_is_refused(config: Config) -> None:
    """They come much faster than the big model computes."""

    async def use(transport: Transport) -> None:
        results = await asyncio.gather(*(generate(transport, seed, "big") for seed in range(5 * QUEUE)), return_exceptions=True)
        assert {type(result) for result in results} == {Picture, Busy}
        assert sum(isinstance(result, Picture) for result in results) >= QUEUE

    using(config, use, "big")


def test_what_is_no_message_harms_nobody(config: Config) -> None:
    async def use(transport: Transport) -> None:
        for garbage in (b"\0\0\0\1\xc1", b"\0\0\0\3\x81\xa1a", b"\xff" * 64, pack(Progress(1, 2, 3))):
            if isinstance(transport, Engine):
                reader, writer = await asyncio.open_unix_connection(reach(transport.path))
                writer.write(garbage)
                while await reader.read(1 << 16):
                    pass  # its greeting; then it hangs up
                writer.close()
            else:
                with pytest.raises(Exception):  # noqa: B017, PT011  # what Ray makes of it
                    async for _ in transport.handle.run.remote(garbage):  # type: ignore[attr-defined]
                        pass
            assert (await generate(transport, 2)).seed == 2

    using(config, use)


def test_what_was_accepted_is_answered_before_it_leaves(config: Config, request: pytest.FixtureRequest) -> None:
    """A drain: an engine that is asked to end, a replica that is replaced."""

    async def use(transport: Transport) -> None:
        begun = asyncio.Event()
        work = asyncio.ensure_future(transport.run(project(50, "plain"), client="", encoding=PNG, watch=lambda _: begun.set()))
        await begun.wait()
        rest = [asyncio.ensure_future(generate(transport, seed)) for seed in range(8)]
        await asyncio.sleep(0)
        if isinstance(transport, Engine):
            for pid in engines(config):
                os.kill(pid, signal.SIGTERM)
        else:
            toml = request.getfixturevalue("remote")
            toml.write_text(toml.read_text().replace("[models.plain]", '[models.plain]\ndescription = "new"'))
            done = await asyncio.to_thread(api, "deploy", toml)
            assert done.returncode == 0, done.stderr
        pictures = await asyncio.gather(work, *rest)
        assert [picture.seed for picture in pictures[1:]] == list(range(8))
        assert (await generate(transport, 2)).seed == 2  # the successor

    using(config, use)


# The server on the cluster.


def test_the_server_gives_the_same_bytes_and_needs_no_torch(local: Config, remote: Path, folder: Path) -> None:
    with serve(folder / "config.toml") as here, serve(remote, workers=2) as there:
        for path in ("/plain/image?seed=3", "/plain/image?seed=4&label=cat1", "/big/image?seed=1"):
            answers = [server.client.get(path) for server in (here, there)]
            assert [answer.status_code for answer in answers] == [200, 200]
            assert answers[0].content == answers[1].content
            assert answers[0].headers["etag"] == answers[1].headers["etag"]
        assert there.engines() == []
        for pid in children(there.process.pid):
            assert "libtorch" not in Path(f"/proc/{pid}/maps").read_text()


def test_killed_replicas_cost_no_request(ray: Cluster, remote: Path) -> None:
    with serve(remote) as server, Load(server, 4) as load:
        until(lambda: is_whole(ray, remote))
        for number in (1, 3):
            load.more(20)
            for pid in ray.replicas()[:number]:
                os.kill(pid, signal.SIGKILL)
            begun = time.monotonic()
            load.more(20)
            print(f"{number} of 3 replicas killed: 20 requests after {time.monotonic() - begun:.1f} s")
        until(lambda: is_whole(ray, remote))
        load.check()


def test_a_request_at_two_deaths_is_refused(ray: Cluster, remote: Path) -> None:
    async def use(transport: Transport) -> None:
        begun = asyncio.Event()
        work = asyncio.ensure_future(transport.run(project(LONG), client="", encoding=PNG, watch=lambda _: begun.set()))
        while not work.done():
            await asyncio.wait((work, asyncio.ensure_future(begun.wait())), return_when=asyncio.FIRST_COMPLETED)
            for pid in ray.processes(b"big:model"):
                os.kill(pid, signal.SIGKILL)
            begun.clear()
        with pytest.raises(Poisonous):
            await work
        assert (await generate(transport, 2, "big")).seed == 2

    using(load_config(remote), use, "big")


def states(toml: Path) -> dict[str, dict[str, object]]:
    done = api("status", toml, "--json")
    assert done.returncode == 0, done.stderr
    return {state["model_id"]: state for state in json.loads(done.stdout)}


def is_whole(ray: Cluster, toml: Path) -> bool:
    """Whether all replicas run, by Ray's word and by the kernel's; either alone lags behind the other."""
    if len(ray.replicas()) != 3:
        return False
    found = states(toml)
    return found["plain"]["replicas"] == {"RUNNING": 2} and found["big"]["replicas"] == {"RUNNING": 1} and len(ray.replicas()) == 3


def test_an_update_under_load_costs_no_request(ray: Cluster, remote: Path) -> None:
    until(lambda: is_whole(ray, remote))
    with serve(remote) as server, Load(server, 3) as load:
        before = set(ray.replicas())
        old = httpx.get(f"{server.url}/plain/image?seed=5", timeout=60).content
        assert api("deploy", remote).returncode == 0
        assert set(ray.replicas()) == before  # nothing has changed
        tiny_precure(remote.parent / "plain.safetensors", categories=2, levels=3, seed=9)
        done = api("deploy", remote)
        assert done.returncode == 0, done.stderr
        until(lambda: len(before & set(ray.replicas())) == 1)
        assert httpx.get(f"{server.url}/plain/image?seed=5", timeout=60).content != old
        load.more(20)
        load.check()


def test_replicas_come_and_go_with_the_load(ray: Cluster, folder: Path) -> None:
    place = folder / "scaled"
    place.mkdir()
    (place / "plain.safetensors").write_bytes((folder / "plain.safetensors").read_bytes())
    scale = {"min": 1, "max": 2, "target": 0.5, "up": 1.0, "down": 2.0}
    models = {"plain": {"file": "plain.safetensors", "relative": True, "warmup": False, "cluster": {"autoscale": scale}}}
    toml = write_config(place, models, {"engine": {"threads": 1}}, cluster={"engine": "ray", "address": ray.address, "name": "scaled"})
    assert api("deploy", toml).returncode == 0

    def running() -> object:
        return states(toml)["plain"]["replicas"]

    try:
        assert running() == {"RUNNING": 1}
        with serve(toml) as server, Load(server, 12) as load:
            begun = time.monotonic()
            until(lambda: running() == {"RUNNING": 2})
            print(f"a second replica after {time.monotonic() - begun:.1f} s")
            load.more(20)
            load.check()
            begun = time.monotonic()
            until(lambda: running() == {"RUNNING": 1})
            print(f"one replica again after {time.monotonic() - begun:.1f} s")
            assert server.client.get("/plain/image?seed=5").status_code == 200
    finally:
        api("down", toml)


def test_status_and_end(ray: Cluster, remote: Path) -> None:
    found = states(remote)
    assert {(name, state["health"], state["queue"]) for name, state in found.items()} == {("plain", "RUNNING", 0), ("big", "RUNNING", 0)}
    with serve(remote) as server:
        done = api("down", remote)
        assert (done.returncode, done.stdout) == (0, "ended\n"), done.stderr
        assert ray.replicas() == []
        assert api("status", remote).stdout == "not deployed: big, plain\n"
        until(lambda: server.client.get("/readyz").status_code == 503)
        assert api("deploy", remote).returncode == 0
        assert server.client.get("/plain/image?seed=5").status_code == 200


def test_no_room_is_told_in_time(ray: Cluster, folder: Path) -> None:
    """Neither for a model nor for its successor, during whose wait the old one serves; what is wanted less then finds room."""
    place = folder / "crowded"
    place.mkdir()
    (place / "plain.safetensors").write_bytes((folder / "plain.safetensors").read_bytes())

    def configure(description: str, num_cpus: float, patience: float) -> Path:
        model = {
            "file": "plain.safetensors",
            "relative": True,
            "warmup": False,
            "description": description,
            "cluster": {"num_cpus": num_cpus},
        }
        cluster = {"engine": "ray", "address": ray.address, "name": "crowded", "patience": patience}
        return write_config(place, {"plain": model}, {"engine": {"threads": 1}}, cluster=cluster)

    try:
        done = api("deploy", configure("old", 1000.0, 33.0))  # Ray says what is missing after thirty seconds
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
        assert done.stderr.startswith("plain: not done after 33 s"), done.stderr
        assert '"CPU": 1000.0' in done.stderr, done.stderr
        done = api("deploy", configure("old", 1.0, 300.0))
        assert (done.returncode, done.stderr) == (0, "")
        toml = configure("new", 1000.0, 2.0)
        done = api("deploy", toml)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert states(toml)["plain"]["replicas"]["RUNNING"] == 1  # type: ignore[index]
        with serve(toml) as server:
            assert server.client.get("/plain/image?seed=5").status_code == 200
    finally:
        assert api("down", configure("new", 1000.0, 300.0)).returncode == 0


def test_what_is_wrong_is_told(ray: Cluster, local: Config, folder: Path, tmp_path: Path) -> None:
    done = api("deploy", folder / "config.toml")
    assert (done.returncode, done.stderr.count("\n"), 'must be "ray"' in done.stderr) == (2, 1, True)
    dead = tmp_path / "dead"
    dead.mkdir()
    done = api("status", write_config(dead, {"plain": {"file": "x"}}, cluster={"engine": "ray", "address": f"127.0.0.1:{free_port()}"}))
    assert (done.returncode, done.stderr.count("\n"), "there is no Ray cluster" in done.stderr) == (2, 1, True)
    (tmp_path / "plain.safetensors").write_bytes(b"nothing of the kind")
    models = {"plain": {"file": "plain.safetensors", "relative": True}}
    done = api("deploy", write_config(tmp_path, models, cluster={"engine": "ray", "address": ray.address}))
    assert (done.returncode, "plain.safetensors" in done.stderr) == (2, True)
