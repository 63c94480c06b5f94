"""A real object store for tests: moto's server, started by the first test that asks, with a bucket for each."""

from __future__ import annotations

import atexit
import functools
import importlib.util
import os
import subprocess
import sys
import time
from itertools import count
from typing import Any

import fsspec
import httpx
import pytest

from tests.serving import free_port

NUMBERS = count()


class ObjectServer:
    """S3 on a free port."""

    def __init__(self) -> None:
        if importlib.util.find_spec("moto") is None:
            pytest.skip("moto is not installed: pip install -r requirements-test.txt")
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        end = time.monotonic() + 60
        while True:
            try:
                httpx.get(f"http://127.0.0.1:{self.port}/")
                return
            except httpx.TransportError:
                assert time.monotonic() < end
                time.sleep(0.05)

    def stop(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    @property
    def options(self) -> dict[str, Any]:
        return {"key": "testing", "secret": "testing", "endpoint_url": f"http://127.0.0.1:{self.port}"}

    def new_url(self) -> str:
        """An empty bucket's folder."""
        name = f"test-{os.getpid()}-{next(NUMBERS)}"
        fsspec.filesystem("s3", skip_instance_cache=True, **self.options).mkdir(name)
        return f"s3://{name}/folder"


@functools.cache
def shared() -> ObjectServer:
    """The one of a test run; one that is to be stopped is started by its test."""
    server = ObjectServer()
    server.start()
    atexit.register(server.stop)
    return server
