"""A Ray cluster of several hosts: replicas over all of them, and hosts, their nodes and the head that die under load."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.checkpoints import tiny_precure
from tests.clusters import MODEL, Load, Node, until
from tests.hosts import Host, network
from tests.serving import write_config

pytestmark = [
    pytest.mark.skipif(not os.environ.get("LONG"), reason="a cluster takes its time: LONG=1 runs it"),
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed; see requirements-cluster.txt"),
]
PATIENT = {"RAY_gcs_rpc_server_reconnect_timeout_s": "3600"}


class Fleet:
    """A head without CPUs, which keeps what it knows in Redis; two nodes for models; and one, without CPUs, for web workers."""

    def __init__(self, folder: Path, hosts: Iterator[Host]) -> None:
        self.folder, self.hosts = folder, hosts
        first = next(hosts)
        here = first.address.rpartition(".")[0] + ".254"
        command = ["redis-server", "--bind", here, "--port", "6399", "--save", "", "--protected-mode", "no", "--dir", str(folder)]
        self.redis = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        self.head = Node(first, folder / "head", environment=PATIENT | {"RAY_REDIS_ADDRESS": f"{here}:6399"})
        self.head.wait()
        self.nodes = [self.join("a", 2), self.join("b", 2)]
        self.web = self.join("web", 0)
        for node in (*self.nodes, self.web):
            node.wait()

    def join(self, name: str, cpus: int) -> Node:
        return Node(next(self.hosts), self.folder / name, head=self.head.address, cpus=cpus, environment=PATIENT)

    def end(self) -> None:
        for node in (self.head, self.web, *self.nodes):
            node.end()
        self.redis.kill()
        self.redis.wait()

    def spread(self) -> list[int]:
        """How many replicas each node has."""
        return [len(node.replicas()) for node in self.nodes]


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    if shutil.which("redis-server") is None:
        pytest.skip("Redis is not installed: apt-get install redis-server")
    folder = Path(tempfile.mkdtemp(prefix="fleet-"))  # short: sockets lie in it
    try:
        with network() as hosts:
            made = Fleet(folder, hosts)
            yield made
            made.end()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def toml(fleet: Fleet) -> Path:
    tiny_precure(fleet.folder / "plain.safetensors", categories=2, levels=3)
    place = {"replicas": 2, "num_cpus": 2.0}
    models = {"plain": {"file": "plain.safetensors", "relative": True, "warmup": False, "cluster": place}}
    ingress = {"enabled": True, "port": 8080, "workers": 2, "num_cpus": 0.0}
    cluster = {"engine": "ray", "address": fleet.head.address, "ingress": ingress}
    path = write_config(fleet.folder, models, {"engine": {"threads": 1, "max_batch": 8}}, cluster=cluster)
    done = fleet.web.run("deploy", path)
    assert (done.returncode, done.stdout) == (0, "deployed\n"), done.stdout
    return path


def test_replicas_are_on_all_hosts(fleet: Fleet, toml: Path) -> None:
    assert fleet.spread() == [1, 1]
    with fleet.web.serve(toml) as server, Load(server, 4) as load:
        load.more(40)
        load.check()


def test_serve_is_a_way_in_on_every_host(fleet: Fleet, toml: Path) -> None:
    told = fleet.web.run("status", toml).stdout
    assert "/      running  2 running" in told, told
    with fleet.web.serve(toml) as server:
        wanted = server.client.get("/plain/image?seed=5")
        assert wanted.status_code == 200
    answers = []
    for host in (node.host for node in (*fleet.nodes, fleet.web, fleet.head)):
        with contextlib.suppress(httpx.ConnectError):  # proxies are on the head and where Serve has a replica
            answers.append(httpx.get(f"http://{host.address}:8080/plain/image?seed=5", timeout=60))
    assert len(answers) >= 3
    assert {(answer.status_code, answer.content) for answer in answers} == {(200, wanted.content)}
    assert answers[0].headers["etag"] == wanted.headers["etag"]


def test_a_dead_node_costs_no_request(fleet: Fleet, toml: Path) -> None:
    """All processes of a host die, and its kernel says so to whoever asks."""
    with fleet.web.serve(toml) as server, Load(server, 4) as load:
        load.more(20)
        fleet.nodes[0].host.kill()
        begun = time.monotonic()
        load.more(20)
        print(f"dead node: served again after {time.monotonic() - begun:.1f} s")
        fleet.nodes[0].restart()
        until(lambda: fleet.spread() == [1, 1])
        print(f"dead node: all replicas again after {time.monotonic() - begun:.1f} s")
        load.more(20)
        load.check()


def test_a_dead_head_costs_no_request(fleet: Fleet, toml: Path) -> None:
    """Live replicas serve on without it; with Redis it knows everything when it is back, and starts what has died meanwhile."""
    with fleet.web.serve(toml) as server, Load(server, 4) as load:
        load.more(20)
        fleet.head.host.kill()
        load.more(40)
        fleet.nodes[1].host.kill(MODEL)
        load.more(40)
        assert fleet.spread() == [1, 0]
        fleet.head.restart()
        begun = time.monotonic()
        fleet.head.wait()
        until(lambda: fleet.spread() == [1, 1])
        print(f"head: back and replicas complete after {time.monotonic() - begun:.1f} s")
        assert fleet.web.run("status", toml).returncode == 0
        load.more(20)
        load.check()


def test_a_host_that_vanishes_costs_no_request(fleet: Fleet, toml: Path) -> None:
    """Nobody is told: connections to it stay open, and no answer comes."""
    with fleet.web.serve(toml) as server, Load(server, 4) as load:
        load.more(20)
        fleet.nodes[0].end()
        begun = time.monotonic()
        load.more(40)
        print(f"vanished host: 40 requests after {time.monotonic() - begun:.1f} s")
        fleet.nodes[0] = fleet.join("c", 2)
        until(lambda: fleet.spread() == [1, 1])
        print(f"vanished host: all replicas again after {time.monotonic() - begun:.1f} s; longest request {max(load.waits):.1f} s")
        load.more(20)
        load.check()
