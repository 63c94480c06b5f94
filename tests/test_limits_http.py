"""Limits as a client sees them, over HTTP and over several workers."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from api.limits.base import State
from tests.checkpoints import tiny_precure
from tests.serving import Running, serve, write_config
from tests.test_limits_processes import wait_until

DELAY = 0.5  # seconds; no request is answered sooner


@contextlib.contextmanager
def limited(folder: Path, limit: dict[str, Any], http: dict[str, Any] | None = None, **options: Any) -> Iterator[Running]:
    tiny_precure(folder / "plain.safetensors", levels=3)
    models = {"plain": {"file": "plain.safetensors", "relative": True}}
    with serve(write_config(folder, models, {"limit": limit, "http": http or {}}), **options) as server:
        yield server


def test_the_rate_holds_over_workers_and_refused_input_costs_nothing(tmp_path: Path) -> None:
    path = tmp_path / "http.sock"
    rate = {"rate": {"enabled": True, "max_request": 5, "window": 600.0}}
    with limited(tmp_path, rate, workers=2, options=["--bind", f"unix:{path}"]) as server:
        for _ in range(10):
            assert server.client.post("/plain/generate", params={"label": "x"}).status_code == 404
            assert server.client.post("/plain/generate", params={"psi": 9}).status_code == 422
            assert server.client.post("/plain/generate", json={"latent": "AAAA"}).status_code == 415
        for left in (4, 3, 2, 1, 0):
            # A connection each, so that both workers are asked.
            answer = httpx.post(f"{server.url}/plain/generate")
            assert answer.status_code == 200
            assert answer.headers["ratelimit-policy"] == '"default";q=5;w=600'
            assert f"r={left};" in answer.headers["ratelimit"]
        refused = httpx.post(f"{server.url}/plain/generate")
        assert refused.status_code == 429
        assert refused.json() == {"detail": "hit the rate limit"}
        assert 0 < int(refused.headers["retry-after"]) <= 600
        known = httpx.get(f"{server.url}/plain/image", params={"seed": 1}, headers={"If-None-Match": "*"})
        assert known.status_code == 304, "what needs no computing needs no quota"
        assert httpx.get(f"{server.url}/models/").status_code == 200
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), base_url="http://server", timeout=60) as nobody:
            assert nobody.post("/plain/generate").status_code == 502, "over a Unix socket a client has no address"


@pytest.fixture(scope="module")
def crowded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """One place, one that may wait for it, and one request a client."""
    limit = {
        "block": {"enabled": True, "timeout": 0.2, "poll": 0.05},
        "concurrency": {"enabled": True, "max_concurrency": 1, "max_queue": 1, "timeout": 60.0},
        "min_delay": DELAY,
    }
    with limited(tmp_path_factory.mktemp("crowded"), limit, {"forwarded": True}) as server:
        yield server


def ask(server: Running, address: str) -> httpx.Response:
    return httpx.post(f"{server.url}/plain/generate", headers={"X-Forwarded-For": address}, timeout=60)


def hold(server: Running, address: str) -> socket.socket:
    """A client that has asked and does not read."""
    connection = socket.create_connection(("127.0.0.1", server.port))
    connection.sendall(b"POST /plain/generate HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: %s\r\nContent-Length: 0\r\n\r\n" % address.encode())
    return connection


def wait_for_places(server: Running, expected: dict[State, int]) -> None:
    wait_until(server.folder / "run", expected)


def test_one_request_a_client_and_headers_from_trusted_proxies_only(crowded: Running) -> None:
    with ThreadPoolExecutor() as pool:
        with crowded.frozen():
            first = pool.submit(ask, crowded, "192.0.2.1")
            wait_for_places(crowded, {State.WORKING: 1})
            refused = ask(crowded, "192.0.2.1")
            other = pool.submit(ask, crowded, "192.0.2.2")
            wait_for_places(crowded, {State.WORKING: 1, State.QUEUED: 1})
        answers = [first.result(), other.result()]
    assert [answer.status_code for answer in answers] == [200, 200]
    assert all(answer.elapsed.total_seconds() >= DELAY for answer in answers)
    assert refused.status_code == 429
    assert refused.json() == {"detail": "too many requests simultaneously"}
    assert refused.headers["retry-after"]


def test_a_client_that_leaves_gives_its_place_back(crowded: Running) -> None:
    with crowded.frozen():
        with hold(crowded, "192.0.2.1"):
            wait_for_places(crowded, {State.WORKING: 1})
            with hold(crowded, "192.0.2.2"):
                wait_for_places(crowded, {State.WORKING: 1, State.QUEUED: 1})
                refused = ask(crowded, "192.0.2.3")
                assert refused.status_code == 503
                assert refused.json() == {"detail": "the server is too busy and temporarily unavailable"}
                assert int(refused.headers["retry-after"]) >= 1
        wait_for_places(crowded, {})
    assert ask(crowded, "192.0.2.3").status_code == 200
