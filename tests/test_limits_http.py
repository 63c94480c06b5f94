"""Limits as a client sees them, over HTTP and over several workers."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

from tests.checkpoints import tiny_precure
from tests.serving import Running, serve, write_config


@contextlib.contextmanager
def limited(folder: Path, limit: dict[str, Any], http: dict[str, Any] | None = None, workers: int = 0) -> Iterator[Running]:
    tiny_precure(folder / "plain.safetensors", levels=3)
    models = {"plain": {"file": "plain.safetensors", "relative": True}}
    config = write_config(folder, models, {"limit": limit, "http": http or {}, "engine": {"linger": 1.0}})
    with serve(config, workers=workers) as server:
        yield server


def test_the_rate_holds_over_workers_and_refused_input_costs_nothing(tmp_path: Path) -> None:
    with limited(tmp_path, {"rate": {"enabled": True, "max_request": 5, "window": 600.0}}, workers=2) as server:
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


def test_one_request_a_client_and_headers_from_trusted_proxies_only(tmp_path: Path) -> None:
    limit = {"block": {"enabled": True, "timeout": 0.2, "poll": 0.05}, "min_delay": 1.5}
    with limited(tmp_path, limit, {"forwarded": True}) as server:
        answers: list[httpx.Response] = []

        def ask(address: str) -> None:
            answers.append(httpx.post(f"{server.url}/plain/generate", headers={"X-Forwarded-For": address}, timeout=30))

        first = threading.Thread(target=ask, args=("192.0.2.1",))
        first.start()
        time.sleep(0.5)
        ask("192.0.2.1")
        ask("192.0.2.2")
        first.join()
        statuses = sorted(answer.status_code for answer in answers)
        assert statuses == [200, 200, 429]
        refused = next(answer for answer in answers if answer.status_code == 429)
        assert refused.json() == {"detail": "too many requests simultaneously"}
        assert refused.headers["retry-after"]
        assert all(answer.elapsed.total_seconds() >= 1.5 for answer in answers if answer.status_code == 200)


def test_a_client_that_leaves_gives_its_place_back(tmp_path: Path) -> None:
    limit = {"concurrency": {"enabled": True, "max_concurrency": 1, "max_queue": 1, "timeout": 20.0}, "min_delay": 10.0}
    with limited(tmp_path, limit) as server:
        port = int(server.url.rpartition(":")[2])

        def hold() -> socket.socket:
            connection = socket.create_connection(("127.0.0.1", port))
            connection.sendall(b"POST /plain/generate HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
            return connection

        working = hold()
        time.sleep(0.5)
        waiting = hold()
        time.sleep(0.3)
        refused = server.client.post("/plain/generate")
        assert refused.status_code == 503
        assert refused.json() == {"detail": "the server is too busy and temporarily unavailable"}
        assert int(refused.headers["retry-after"]) >= 1
        working.close()
        waiting.close()
        time.sleep(0.5)
        begun = time.monotonic()
        assert server.client.post("/plain/generate").status_code == 200
        assert time.monotonic() - begun < 11.5, "it had to wait for a place that nobody holds"


def test_an_unknown_address_is_no_error_while_nothing_needs_it(tmp_path: Path) -> None:
    """Over a Unix socket there is none; a limit that needs one answers 502."""
    for limit, status in (({}, 200), ({"rate": {"enabled": True}}, 502)):
        folder = tmp_path / str(status)
        folder.mkdir()
        tiny_precure(folder / "plain.safetensors", levels=3)
        models = {"plain": {"file": "plain.safetensors", "relative": True}}
        config = write_config(folder, models, {"limit": limit, "engine": {"linger": 1.0}})
        path = folder / "http.sock"
        with serve(config, workers=1, options=["--bind", f"unix:{path}"], ready=False):
            end = time.monotonic() + 60
            while not path.exists() and time.monotonic() < end:
                time.sleep(0.05)
            with httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), base_url="http://server", timeout=60) as client:
                assert client.post("/plain/generate").status_code == status
