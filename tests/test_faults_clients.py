"""Clients that vanish without a word or take for ever, and engines that die while clients wait."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.faults import Watch, draw_seed, half_open, wait_for
from tests.serving import ROOT, Running, serve
from tests.test_tasks import write

LONG = bool(os.environ.get("LONG"))
VANISHED = 100 if LONG else 20
CONCURRENCY = {"enabled": True, "max_concurrency": 1, "max_queue": 4 * VANISHED, "timeout": 50.0}
HEAD = b"POST /plain/generate?count=32 HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
UNFINISHED = {
    "an answer that nobody reads": HEAD + b"Content-Length: 0\r\n\r\n",
    "half a head": HEAD,
    "half a body": HEAD + b'Content-Length: 100\r\n\r\n{"latent": ',
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    config = write(tmp_path_factory.mktemp("clients"), server={"limit": {"concurrency": CONCURRENCY}})
    with serve(config) as running:
        yield running


def port(server: Running) -> int:
    return int(server.url.rpartition(":")[2])


def open_files(server: Running) -> int:
    return len(list(Path(f"/proc/{server.process.pid}/fd").iterdir()))


def generate(server: Running) -> int:
    return httpx.post(f"{server.url}/plain/generate", timeout=60).status_code


@pytest.mark.parametrize("kind", UNFINISHED)
def test_clients_that_vanish_keep_no_place(server: Running, kind: str) -> None:
    """There is one place; whoever has it, or waits for it, is gone, and no packet says so."""
    assert generate(server) == 200
    before = open_files(server)
    vanished = [half_open(port(server), UNFINISHED[kind]) for _ in range(VANISHED)]
    watch = Watch()
    try:
        assert generate(server) == 200
        watch.tell(f"{VANISHED} clients vanished with {kind}: the next is answered")
        assert generate(server) == 200
    finally:
        for connection in vanished:
            connection.close()
    wait_for(lambda: open_files(server) <= before + 2, "their connections are closed")


def test_clients_that_take_for_ever_hold_up_nobody(server: Running) -> None:
    """A byte of their heads now and then."""
    before, stop = open_files(server), threading.Event()
    slow = [half_open(port(server), b"POST /plain/generate HTTP/1.1\r\n") for _ in range(5 * VANISHED)]

    def go_on() -> None:
        while not stop.wait(0.05):
            for connection in slow:
                with contextlib.suppress(OSError):  # where they took longer than heads may
                    connection.send(b"X")

    thread = threading.Thread(target=go_on)
    thread.start()
    try:
        assert [generate(server) for _ in range(10)] == [200] * 10
    finally:
        stop.set()
        thread.join()
        for connection in slow:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # no goodbye either
            connection.close()
    wait_for(lambda: open_files(server) <= before + 2, "their connections are closed")


@pytest.mark.parametrize("workers", [0, 1], ids=["python main.py", "gunicorn"])
def test_clients_that_take_for_ever_are_given_up(tmp_path: Path, workers: int) -> None:
    """However the server is started; only sooner here."""
    home = tmp_path / "home"
    home.mkdir()
    sooner = "from guni.protocol import Protocol; Protocol.period = 1.0"
    root, program = repr(str(ROOT)), repr(str(ROOT / "main.py"))
    (home / "gunicorn.py").write_text(f"from guni.conf import *; {sooner}")
    (home / "main.py").write_text(
        f"import os, runpy, sys; os.chdir({root}); sys.path[0] = {root}; {sooner}; runpy.run_path({program}, run_name='__main__')"
    )
    config = write(tmp_path)
    options = ["-c", str(home / "gunicorn.py")]
    with contextlib.ExitStack() as stack:
        running = stack.enter_context(serve(config, workers=workers, options=options, home=ROOT if workers else home))
        begun = [b"", UNFINISHED["half a head"], UNFINISHED["half a body"]]
        clients = [stack.enter_context(half_open(port(running), data)) for data in begun]
        for client in clients:
            client.settimeout(60)
            assert client.recv(4096).startswith(b"HTTP/1.1 408 Request Timeout\r\n")
            assert client.recv(4096) == b""
        assert generate(running) == 200
        assert "Traceback" not in running.log.read_text()


def test_engines_that_die_cost_no_request(server: Running) -> None:
    chance = random.Random(draw_seed())
    wanted = [httpx.get(f"{server.url}/plain/image?seed={seed}").content for seed in range(4)]
    wrong: list[httpx.Response] = []
    longest, answered, stop = [0.0], [0], threading.Event()

    def come_again(seed: int) -> None:
        with httpx.Client(base_url=server.url, timeout=90) as client:
            while not stop.is_set():
                begun = time.monotonic()
                answer = client.get(f"/plain/image?seed={seed}")
                if answer.status_code != 200 or answer.content != wanted[seed]:
                    wrong.append(answer)
                longest[0] = max(longest[0], time.monotonic() - begun)
                answered[0] += 1

    threads = [threading.Thread(target=come_again, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(20 if LONG else 2):
            time.sleep(chance.uniform(0.0, 0.5))
            wait_for(lambda: bool(server.engines()), "there is an engine")
            for pid in server.engines():
                os.kill(pid, signal.SIGKILL)
            watch, before = Watch(), answered[0]
            wait_for(lambda before=before: answered[0] > before + 8, "requests are answered again")  # type: ignore[misc]
            watch.tell("the engine was killed: requests are answered")
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    print(f"the longest request took {longest[0]:.1f} s")
    assert not wrong, [(answer.status_code, answer.text[:200]) for answer in wrong[:3]]
