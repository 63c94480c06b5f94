"""The server under gunicorn: workers share an engine, agree to the byte, and come and go without a lost request."""

from __future__ import annotations

import contextlib
import functools
import io
import itertools
import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from tests import serving
from tests.checkpoints import tiny_precure
from tests.serving import Running, serve, write_config


@pytest.fixture
def config(tmp_path: Path) -> Path:
    tiny_precure(tmp_path / "plain.safetensors", levels=3)
    tiny_precure(tmp_path / "classes.safetensors", categories=3, levels=4, seed=1)
    models = {name: {"file": f"{name}.safetensors", "relative": True} for name in ("plain", "classes")}
    return write_config(tmp_path, models, {"engine": {"linger": 20.0}})


class Crowd(serving.Crowd):
    """Clients that ask as long as they are wanted; ``failures`` holds whatever was not a 200."""

    def __init__(self, server: Running, count: int) -> None:
        super().__init__(*(functools.partial(self.ask, number) for number in range(count)))
        self.server = server
        self.failures: list[str] = []
        self.made = itertools.count()

    def ask(self, number: int) -> None:
        while not self.stop.is_set():
            try:
                # A connection each: whoever keeps one alive must expect the server to close it between two requests.
                answer = httpx.post(f"{self.server.url}/plain/generate", params={"seed": number}, timeout=60)
                if answer.status_code != 200:
                    self.failures.append(f"{answer.status_code} {answer.text}")
            except httpx.HTTPError as error:
                self.failures.append(repr(error))
            next(self.made)


def children(pid: int) -> set[int]:
    """Those processes of gunicorn's that serve; one that sees to a HUP does not, and stays for a while."""
    return {child for child in map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()) if serves(child)}


def serves(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return b"guni.reloading" not in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


def until(condition: Any, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.05)


def test_rolling_restart_drops_no_request(config: Path) -> None:
    with serve(config, workers=2) as server, Crowd(server, 4) as crowd:
        (engine,) = server.engines()
        before = children(server.process.pid)
        for _ in range(2):
            time.sleep(0.5)
            old = children(server.process.pid)
            os.kill(server.process.pid, signal.SIGHUP)
            until(lambda old=old: not (old & children(server.process.pid)) and len(children(server.process.pid)) == 2)
        time.sleep(0.5)
        crowd.__exit__()
        assert not before & children(server.process.pid)
        assert server.engines() == [engine], "the engine stays when workers are replaced"
        assert not crowd.failures, crowd.failures[:3]
        assert next(crowd.made) > 10


def test_a_changed_file_gets_an_engine_beside_the_old_one(config: Path) -> None:
    with serve(config, workers=2) as server, Crowd(server, 3) as crowd:
        old = children(server.process.pid)
        text = config.read_text()
        config.write_text(text + '\n[models.third]\nfile = "plain.safetensors"\nrelative = true\n')
        os.kill(server.process.pid, signal.SIGHUP)
        until(lambda: not (old & children(server.process.pid)))

        def serves_third() -> bool:
            return httpx.post(f"{server.url}/third/generate", timeout=60).status_code == 200

        until(serves_third)
        crowd.__exit__()
        assert not crowd.failures, crowd.failures[:3]


def test_recycled_workers_drop_no_request(config: Path) -> None:
    with serve(config, workers=2, options=["--max-requests", "40", "--max-requests-jitter", "10"]) as server, Crowd(server, 4) as crowd:
        first = children(server.process.pid)
        until(lambda: not first & children(server.process.pid))
        crowd.__exit__()
        assert not crowd.failures, crowd.failures[:3]


def test_workers_that_cannot_start_are_tried_again(config: Path) -> None:
    """While the TOML is broken, who serves goes on; gunicorn ends only where nobody has ever started (tests/test_conf.py)."""
    text = config.read_text()
    with serve(config, workers=2) as server:
        first = children(server.process.pid)
        config.write_text("titel = 'x'")
        os.kill(min(first), signal.SIGTERM)
        until(lambda: server.log.read_text().count("titel: unknown key") > 1)
        assert server.client.post("/plain/generate").status_code == 200
        config.write_text(text)
        until(lambda: len(children(server.process.pid)) == 2 and min(first) not in children(server.process.pid))
        assert server.client.post("/plain/generate").status_code == 200


def test_event_streams_do_not_hold_up_a_worker_that_leaves(tmp_path: Path, config: Path) -> None:
    """The task never runs, so its stream has no end; a worker that waited for it would stay for ``graceful_timeout``."""
    config.write_text(config.read_text() + "\n[tasks]\nparallel = 0\n")
    with serve(config, workers=1, options=["--max-requests", "30", "--max-requests-jitter", "0"]) as server:
        first = children(server.process.pid)
        task_id = server.client.post("/task", json={"params_type": "generate", "seed": 1}).json()
        with server.client.stream("GET", f"/task/{task_id}/events", timeout=60) as stream:
            lines = stream.iter_lines()
            assert next(line for line in lines if line.startswith("event")) == "event: pending"
            begun = time.monotonic()
            for _ in range(30):
                httpx.get(f"{server.url}/version", timeout=60)
            assert not [line for line in lines if line.startswith("event")], "nothing happens to the task"
        until(lambda: not first & children(server.process.pid))
        assert time.monotonic() - begun < 50, "the worker waited for the stream"
        assert server.client.get(f"/task/{task_id}").json()["event_type"] == "pending"


def recipes(count: int) -> Iterator[tuple[str, dict[str, Any]]]:
    dice = random.Random(7)
    for _ in range(count):
        model = dice.choice(["plain", "classes"])
        query: dict[str, Any] = {"seed": dice.randrange(40), "psi": dice.choice([0.5, 1.0]), "noise": dice.choice(["random", "none"])}
        if model == "classes" and dice.random() < 0.5:
            query["label"] = dice.choice("012")
        yield f"/{model}/image", query


def test_same_recipe_same_bytes_from_any_worker_and_after_a_restart(config: Path) -> None:
    """1,000 random requests, alone and in company, from three workers and from a new server."""
    asked = list(recipes(500))
    seen: dict[str, bytes] = {}
    labels: list[str] = []
    mismatches: list[str] = []

    def run(server: Running, share: list[tuple[str, dict[str, Any]]]) -> None:
        with httpx.Client(base_url=server.url, timeout=60) as client:
            for path, query in share:
                if "label" in query:
                    query = query | {"label": labels[int(query["label"])]}
                answer = client.get(path, params=query)
                assert answer.status_code == 200, answer.text
                known = seen.setdefault(str(answer.request.url.raw_path), answer.content)
                if known != answer.content:
                    again = [client.get(path, params=query).content for _ in range(5)]
                    votes = f"asked five times more: {again.count(known)} as first, {again.count(answer.content)} as now"
                    mismatches.append(f"{answer.request.url}, {len(share)} a client: {compare(known, answer.content)}; {votes}")

    for clients in (8, 1):
        with serve(config, workers=3) as server:
            labels[:] = next(model for model in server.client.get("/models/").json() if model["id"] == "classes")["labels"]
            threads = [threading.Thread(target=run, args=(server, asked[number::clients])) for number in range(clients)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            if mismatches:
                mismatches += [line for line in server.log.read_text().splitlines() if " WARNING " in line or " ERROR " in line]
    assert len(seen) > 150
    assert not mismatches, processor()


def compare(one: bytes, other: bytes) -> str:
    """How two files of what should be one picture differ."""
    first, second = (np.asarray(Image.open(io.BytesIO(data))).astype(int) for data in (one, other))
    if first.shape != second.shape:
        return f"pictures of {first.shape} and {second.shape}"
    far = np.abs(first - second)
    return f"{np.count_nonzero(far)} of {far.size} values differ, by {far.max()} at most; {len(one)} and {len(other)} bytes"


def processor() -> str:
    """What chooses the kernels, and with them the last bits of every sum."""
    told = dict(line.split(":", 1) for line in Path("/proc/cpuinfo").read_text().splitlines() if ":" in line)
    facts = {key.strip(): value.strip() for key, value in told.items()}
    wide = [flag for flag in facts.get("flags", "").split() if flag.startswith(("avx", "amx", "fma"))]
    return " ".join([*(facts.get(key, "") for key in ("vendor_id", "cpu family", "model", "model name", "cache size")), *wide])


def test_workers_are_small_and_hold_no_model(config: Path) -> None:
    with serve(config, workers=8) as server:
        for _ in range(40):
            assert server.client.post("/plain/generate").status_code == 200
        workers = children(server.process.pid)
        assert len(server.engines()) == 1
        assert len(workers) == 8
        for pid in workers:
            private = sum(
                int(line.split()[1]) for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines() if line.startswith("Private_")
            )
            assert private < 100_000, f"{private} kB"
            assert "torch" not in Path(f"/proc/{pid}/maps").read_text()


def test_a_unix_socket_peer_needs_no_address(config: Path, tmp_path: Path) -> None:
    path = tmp_path / "http.sock"
    with serve(config, workers=1, options=["--bind", f"unix:{path}"], ready=False):
        until(path.exists)
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), base_url="http://server", timeout=60) as client:
            assert client.post("/plain/generate").status_code == 200
