"""Real servers for tests: a TOML, the processes, and a client for them."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import httpx
import tomli_w
from starlette.types import Receive, Scope, Send

if TYPE_CHECKING:
    from api.server import Server

ROOT = Path(__file__).resolve().parents[1]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def write_config(folder: Path, models: Mapping[str, Any], server: Mapping[str, Any] | None = None, **root: Any) -> Path:
    """A TOML in ``folder``, with everything the server writes beside it."""
    place = {"tmp_dir": str(folder / "run"), "data_dir": str(folder / "data")}
    path = folder / "config.toml"
    path.write_text(tomli_w.dumps({**root, "server": {**place, **(server or {})}, "models": dict(models)}))
    return path


class Running:
    """A server that runs: its base URL, its process, its log."""

    def __init__(self, url: str, process: subprocess.Popen[bytes], log: Path, folder: Path) -> None:
        self.url, self.process, self.log, self.folder = url, process, log, folder
        self.client = httpx.Client(base_url=url, timeout=60)

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def engines(self) -> list[int]:
        """Pids of the engine processes of this server's folder."""
        found = []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                command = (entry / "cmdline").read_bytes() if entry.name.isdigit() else b""
                if b"api.engine.process" in command and os.fsencode(self.folder) in command:
                    found.append(int(entry.name))
        return found

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """What is asked for meanwhile waits: the engines stand still."""
        engines = self.engines()
        assert engines
        for pid in engines:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in engines:
                os.kill(pid, signal.SIGCONT)

    def stop(self) -> None:
        """The web server goes; its engines stay for as long as they linger."""
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def wait_ready(self, seconds: float = 120.0) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if self.process.poll() is not None:
                raise RuntimeError(f"the server ended:\n{self.log.read_text()[-2000:]}")
            with contextlib.suppress(httpx.TransportError):
                if self.client.get("/readyz").status_code == 200:
                    return
            time.sleep(0.05)
        raise RuntimeError(f"not ready after {seconds} s:\n{self.log.read_text()[-2000:]}")


@contextlib.contextmanager
def serve(
    config: Path, *, workers: int = 0, options: Sequence[str] = (), port: int | None = None, ready: bool = True, home: Path = ROOT
) -> Iterator[Running]:
    """Serves ``config`` by ``python main.py``, or by gunicorn with ``workers``, from the project in ``home``; ends what it began."""
    port = port or free_port()
    folder = config.parent
    log = folder / f"server-{port}.log"
    environment = {**os.environ, "STYLEGAN_TOML": str(config), "PORT": str(port), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "main.py"]
    if workers:
        command = [
            sys.executable,
            "-m",
            "gunicorn",
            "-c",
            "guni/conf.py",
            "--bind",
            f"127.0.0.1:{port}",
            "--workers",
            str(workers),
            *options,
        ]
    with log.open("wb") as out:
        process = subprocess.Popen(command, cwd=home, env=environment, stdout=out, stderr=subprocess.STDOUT, start_new_session=True)
    running = Running(f"http://127.0.0.1:{port}", process, log, folder)
    try:
        if ready:
            running.wait_ready()
        yield running
    finally:
        running.client.close()
        running.stop()
        for pid in running.engines():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)


class Crowd:
    """Clients, each on a thread of its own, that come again until ``stop`` is set; the end of the block sets it and waits for them."""

    def __init__(self, *clients: Callable[[], None]) -> None:
        self.stop = threading.Event()
        self.threads = [threading.Thread(target=client) for client in clients]

    def __enter__(self) -> Self:
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop.set()
        for thread in self.threads:
            thread.join()


@contextlib.asynccontextmanager
async def inside(
    config: Path, *, routes: Mapping[str, Callable[..., Any]] | None = None
) -> AsyncIterator[tuple[httpx.AsyncClient, Server]]:
    """A server in this process, with routes of a test's own, and a client that needs no socket to it."""
    from api.app import create_app
    from api.conf import load_config

    app = create_app(load_config(config))
    for path, route in (routes or {}).items():
        app.add_api_route(path, route)
    async with app.router.lifespan_context(app) as state:
        assert state is not None

        async def serve(scope: Scope, receive: Receive, send: Send) -> None:
            await app({**scope, "state": dict(state)}, receive, send)

        async with httpx.AsyncClient(transport=httpx.ASGITransport(serve), base_url="http://server") as client:
            yield client, state["server"]
