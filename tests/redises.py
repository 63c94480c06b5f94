"""A real Redis for tests: one server, started by the first test that asks, with a numbered database for each."""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import signal
import subprocess
import tempfile
import time
from itertools import count
from pathlib import Path

import pytest
import redis

from api.cluster import name_space

DATABASES = 1000


class RedisServer:
    """On a Unix socket in a temporary folder. ``save``: what it holds survives ``kill`` and ``start``."""

    def __init__(self, *, save: bool = False) -> None:
        program = shutil.which("redis-server") or shutil.which("valkey-server")
        if program is None:
            pytest.skip("Redis is not installed: apt-get install redis-server")
        self.program, self.save = program, save
        self.folder = Path(tempfile.mkdtemp(prefix="redis-"))
        self.socket = self.folder / "s"
        self.numbers = count()
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        options = ["--port", "0", "--unixsocket", str(self.socket), "--databases", str(DATABASES), "--dir", str(self.folder)]
        options += ["--appendonly", "yes", "--appendfsync", "always"] if self.save else ["--save", ""]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen([self.program, *options], stdout=log, stderr=log)
        end = time.monotonic() + 60
        while True:
            try:
                with redis.Redis(unix_socket_path=str(self.socket)) as client:
                    client.ping()
                return
            except redis.ConnectionError:
                assert time.monotonic() < end, (self.folder / "log").read_text()[-2000:]
                time.sleep(0.01)

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def freeze(self) -> None:
        """From here to ``thaw`` it answers nobody, but the kernel takes connections for it."""
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGCONT)

    def stop(self) -> None:
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def new_url(self, *, settled: bool = True) -> str:
        """An empty database; ``settled``: the limits think that somebody was there a moment ago."""
        url = f"unix://{self.socket}?db={next(self.numbers)}"
        if settled:
            settle(url)
        return url


def settle(url: str) -> None:
    """Others were at work here until now, so that nobody need wait for what they might still tell."""
    with redis.Redis.from_url(url, decode_responses=True) as client:
        seconds, _ = client.time()
        client.hset(name_space(client) + "clock", mapping={"last": seconds * 10**6, "born": (seconds - 3600) * 10**6})


@functools.cache
def shared() -> RedisServer:
    """The one of a test run; those that are to be killed are started by their tests."""
    server = RedisServer()
    server.start()
    atexit.register(server.stop)
    return server
