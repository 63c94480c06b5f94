"""The soak and the overload, in small; LONG=1 runs them with the default models, and for longer."""

from __future__ import annotations

import asyncio
import json
import os
import random
import sqlite3
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from bench import overload, soak
from bench.storm import Storm
from tests.checkpoints import tiny_precure
from tests.serving import ROOT, write_config

LONG = bool(os.environ.get("LONG"))


@pytest.fixture
def config(tmp_path: Path) -> Path:
    for number, name in enumerate(("plain", "other")):
        tiny_precure(tmp_path / f"{name}.safetensors", levels=3, seed=number)
    return write_config(tmp_path, {name: {"file": f"{name}.safetensors", "relative": True} for name in ("plain", "other")})


def test_a_small_overload(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = [] if LONG else ["--config", str(config), "--model", "plain", "--seconds", "0.6", "--rounds", "1", "--no-greed"]
    status = overload.main(options)
    told = capsys.readouterr().out
    print(told)
    assert status == 0
    assert "| **3 × the best** |" in told
    assert "refused requests, p99 ms" in told


class Broken(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.send_response(500)
        self.send_header("Content-Length", "0")
        self.end_headers()


@pytest.mark.parametrize("rate", [None, 50.0])
def test_the_crowd_tells_what_should_not_be(tmp_path: Path, rate: float | None) -> None:
    group, out = {"name": "crowd", "first": 0, "clients": 2, "rate": rate}, tmp_path / "crowd.json"
    with ThreadingHTTPServer(("127.0.0.1", 0), Broken) as server:
        threading.Thread(target=server.serve_forever).start()
        asked = {"port": server.server_port, "groups": [group], "lead": 0, "seconds": 0.5, "seed": 1, "out": str(out)}
        subprocess.run([sys.executable, "-m", "bench.crowd"], input=json.dumps(asked), cwd=ROOT, text=True, check=True, timeout=60)
        server.shutdown()
    told = json.loads(out.read_text())["groups"]["crowd"]
    assert [list(client["faults"]) for client in told] == [["500"]] * 2
    assert [client["faults"]["500"] for client in told] == [client["asked"] for client in told]
    assert not any(client["served"] or client["refused"] for client in told)


def test_a_small_soak(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--minutes", "3"]
    if not LONG:
        options = [
            "--minutes",
            "0.08",
            "--config",
            str(config),
            "--gans",
            "plain",
            "other",
            "--diffusion",
            "--clients",
            "8",
            "--every",
            "0.3",
        ]
    status = soak.main(options)
    told = capsys.readouterr().out
    print(told)
    assert status == 0
    assert "all requirements hold" in told


def storm() -> Storm:
    return Storm("http://server", ["plain"], [], random.Random(1), history=False)


def test_answers_that_must_not_be_are_faults() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        status, _, wait = scope["path"].strip("/").partition("/")
        await Response(status_code=int(status), headers={"Retry-After": wait} if wait else None)(scope, receive, send)

    async def run() -> None:
        one = storm()
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://server") as client:
            for count, path in enumerate(("/500", "/503", "/404", "/502/1"), 1):
                assert await one.ask(client, "x", "GET", path) is None
                assert len(one.faults) == count, one.faults
            for path in ("/503/0", "/429/0"):
                assert await one.ask(client, "x", "GET", path) is None
            assert await one.ask(client, "x", "GET", "/200") is not None
        assert (len(one.faults), one.outcomes["x"]) == (4, {"refused": 2, "served": 1})

    asyncio.run(run())


def test_events_out_of_order_are_faults() -> None:
    def event(number: int, task_number: int, kind: str) -> dict[str, object]:
        return {"id": number, "task_id": "a", "number": task_number, "event_type": kind}

    for events, fault in (
        ([event(1, 1, "pending"), event(2, 2, "finished")], None),
        ([event(1, 1, "pending"), event(1, 1, "pending")], "came after"),
        ([event(1, 1, "pending"), event(3, 3, "started")], "event 3 came after 1"),
        ([event(1, 1, "pending"), event(2, 2, "finished"), event(3, 3, "finished")], "finished came after finished"),
        ([event(1, 1, "failed")], "failed"),
    ):
        one, since, numbers = storm(), 0, dict[str, int]()
        for told in events:
            since = one.take(told, since, numbers)
        assert (not one.faults) == (fault is None), one.faults
        assert fault is None or fault in one.faults[0]


def test_tasks_that_are_lost_or_done_twice_are_faults(tmp_path: Path) -> None:
    def write(name: str, states: dict[str, str], events: list[tuple[str, int, str]], images: list[str]) -> Path:
        with sqlite3.connect(tmp_path / name) as db:
            db.execute("CREATE TABLE tasks (id, state)")
            db.execute("CREATE TABLE events (task_id, number, kind)")
            db.execute("CREATE TABLE images (task_id)")
            db.executemany("INSERT INTO tasks VALUES (?, ?)", states.items())
            db.executemany("INSERT INTO events VALUES (?, ?, ?)", events)
            db.executemany("INSERT INTO images VALUES (?)", [(task_id,) for task_id in images])
        db.close()
        return tmp_path / name

    whole = [("a", 1, "pending"), ("a", 2, "finished")]
    for name, path, fault in (
        ("well", write("well", {"a": "finished"}, whole, ["a"]), None),
        ("lost", write("lost", {}, [], []), "gone"),
        ("stuck", write("stuck", {"a": "started"}, whole[:1], []), "is started"),
        ("twice", write("twice", {"a": "finished"}, [*whole, ("a", 3, "finished")], ["a"]), "ended 2 times"),
        ("two", write("two", {"a": "finished"}, whole, ["a", "a"]), "has 2 pictures"),
        ("gap", write("gap", {"a": "finished"}, [("a", 1, "pending"), ("a", 3, "finished")], ["a"]), "numbered"),
    ):
        one = storm()
        one.accepted.add("a")
        soak.check_store(path, one)
        assert (not one.faults) == (fault is None), (name, one.faults)
        assert fault is None or fault in one.faults[0], (name, one.faults)
