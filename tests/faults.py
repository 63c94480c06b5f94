"""What tests break: a network between two processes, a disk, the wall clock. Real ones, of this test alone."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

import httpx
import pytest

from tests.serving import free_port

CHUNK = 1 << 16
FAKETIME = sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))


def draw_seed() -> int:
    """A seed that a failed test tells; SEED repeats it."""
    seed = int(os.environ.get("SEED") or random.randrange(1 << 32))
    print(f"seed {seed}")
    return seed


class Watch:
    """Prints how long it took until all was well again, for docs/operating.md."""

    def __init__(self) -> None:
        self.begun = time.monotonic()

    def tell(self, what: str) -> float:
        took = time.monotonic() - self.begun
        print(f"recovery: {what}: {took:.1f} s")
        return took


class Proxy:
    """A network between clients and a server that listens on a Unix socket or a port of this host.

    ``with Proxy(path) as network``: clients connect to ``network.port``. What happens to a connection is decided for each piece as it
    passes, so that faults strike in the middle of things. It runs on a thread of its own.
    """

    def __init__(self, server: Path | int, seed: int = 0) -> None:
        self.server, self.chance, self.port = server, random.Random(seed), free_port()
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.lines: set[Line] = set()
        self.up = True
        self.late = (0.0, 0.0)  # seconds that each piece is on its way, from … to
        self.flowing = asyncio.Event()
        self.cue: bytes | None = None  # the answer to what holds this is lost, and then the connection
        self.dark = False  # new connections are taken, and nothing passes, ever

    def __enter__(self) -> Self:
        self.thread.start()
        asyncio.run_coroutine_threadsafe(self.open(), self.loop).result(10)
        return self

    def __exit__(self, *exc_info: object) -> None:
        asyncio.run_coroutine_threadsafe(self.close(), self.loop).result(10)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(10)
        self.loop.close()

    async def open(self) -> None:
        self.flowing.set()
        self.listening = await asyncio.start_server(self.take, "127.0.0.1", self.port)

    async def close(self) -> None:
        self.listening.close()
        for line in list(self.lines):
            line.reset()
        while self.lines:
            await asyncio.sleep(0.01)

    async def take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line = Line(self, reader, writer)
        self.lines.add(line)
        try:
            await line.live()
        finally:
            line.reset()
            self.lines.discard(line)

    def do(self, change: Callable[[], None]) -> None:
        """In the network's thread; returns when it is done."""
        done = threading.Event()
        self.loop.call_soon_threadsafe(change)
        self.loop.call_soon_threadsafe(done.set)
        assert done.wait(10)

    # The faults. Each may be called while clients are at work.

    def cut(self) -> None:
        """Every connection breaks; new ones are well."""

        def change() -> None:
            for line in list(self.lines):
                line.reset()

        self.do(change)

    def fail(self) -> None:
        """Every connection breaks, and new ones too, until ``mend``."""
        self.up = False
        self.cut()

    def slow(self, least: float, most: float) -> None:
        """Every piece is on its way for a random time, in its order within a connection."""
        self.late = (least, most)

    def stall(self) -> None:
        """Nothing passes until ``mend``; then all of it does, also what a client that has given up had sent."""
        self.do(self.flowing.clear)

    def darken(self) -> None:
        """As where a host vanishes: present and new connections stay, and nothing comes of them. ``mend`` helps new ones only."""

        def change() -> None:
            self.dark = True
            for line in self.lines:
                line.dark = True

        self.do(change)

    def deafen(self, cue: bytes) -> None:
        """What clients say arrives, and what the server answers to a piece with ``cue`` is lost together with the connection."""
        self.cue = cue

    def mend(self) -> None:
        def change() -> None:
            self.up, self.late, self.cue, self.dark = True, (0.0, 0.0), None, False
            self.flowing.set()

        self.do(change)


class Line:
    """One connection through the network."""

    def __init__(self, network: Proxy, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.network, self.near = network, (reader, writer)
        self.far: asyncio.StreamWriter | None = None
        self.dark, self.deaf = network.dark, False
        self.ended = asyncio.Event()

    async def live(self) -> None:
        if not self.network.up:
            return
        if self.dark:
            await self.ended.wait()
            return
        server = self.network.server
        with contextlib.suppress(OSError):
            reader, self.far = await (
                asyncio.open_unix_connection(str(server)) if isinstance(server, Path) else asyncio.open_connection("127.0.0.1", server)
            )
            pumps = [
                asyncio.ensure_future(self.pump(self.near[0], self.far, answers=False)),
                asyncio.ensure_future(self.pump(reader, self.near[1], answers=True)),
            ]
            ending = asyncio.ensure_future(self.ended.wait())
            await asyncio.wait((*pumps, ending), return_when=asyncio.FIRST_COMPLETED)
            for task in (*pumps, ending):
                task.cancel()
            await asyncio.gather(*pumps, ending, return_exceptions=True)

    async def pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, answers: bool) -> None:
        """Ends when one side has ended, or the connection is to."""
        network = self.network
        with contextlib.suppress(OSError):
            while piece := await reader.read(CHUNK):
                if network.late[1]:
                    await asyncio.sleep(network.chance.uniform(*network.late))
                await network.flowing.wait()
                if answers and self.deaf:
                    return
                if not answers and network.cue is not None and network.cue in piece:
                    self.deaf = True
                if self.dark:
                    break
                writer.write(piece)
                await writer.drain()
        if self.dark:
            await self.ended.wait()
        await network.flowing.wait()

    def reset(self) -> None:
        """To both sides at once, without a word."""
        self.ended.set()
        for writer in (self.near[1], self.far):
            if writer is not None and not writer.is_closing():
                writer.transport.abort()


# Disks


@contextlib.contextmanager
def small_disk(folder: Path, mebibytes: int) -> Iterator[Path]:
    """A file system of its own at ``folder``, small enough to be filled. Skips where it cannot be mounted."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m,mode=0777", "tmpfs", str(folder)]
    if os.getuid() != 0 or shutil.which("mount") is None:
        pytest.skip("only root can mount a small disk")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"a small disk cannot be mounted: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


BALLAST = "ballast"


def fill(folder: Path, leave: int = 0) -> None:
    """Takes all the space there is, but for ``leave`` bytes."""
    with open(folder / BALLAST, "ab", buffering=0) as file:
        size = 1 << 20
        while size:
            try:
                if os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize - leave < size:
                    size //= 2
                    continue
                file.write(bytes(size))
            except OSError:
                size //= 2


def empty(folder: Path) -> None:
    (folder / BALLAST).unlink()


# Clocks


class Clock:
    """The wall clock of the processes that are started with ``environment``; the monotonic ones stay as they are."""

    def __init__(self, folder: Path) -> None:
        if not FAKETIME:
            pytest.skip("libfaketime is not installed: apt-get install libfaketime")
        self.file = folder / "clock"
        self.move(0)

    @property
    def environment(self) -> dict[str, str]:
        return {
            "LD_PRELOAD": str(FAKETIME[-1]),
            "FAKETIME_TIMESTAMP_FILE": str(self.file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "FAKETIME_DONT_RESET": "1",
            "NO_FAKE_STAT": "1",
        }

    def move(self, seconds: int) -> None:
        """So far from the true time, from now on."""
        draft = self.file.with_suffix(".new")
        draft.write_text(f"{seconds:+d}s\n")
        draft.replace(self.file)

    def check(self) -> None:
        """That it can be moved, and that it moves nothing else."""
        self.move(3600)
        code = "import time; print(time.time(), time.monotonic(), time.clock_gettime(time.CLOCK_BOOTTIME))"
        told = subprocess.run(
            [shutil.which("python3") or "python3", "-c", code],
            env=os.environ | self.environment,
            capture_output=True,
            text=True,
            check=True,
        )
        wall, monotonic, boot = map(float, told.stdout.split())
        assert 3500 < wall - time.time() < 3700
        assert abs(monotonic - time.monotonic()) < 60
        assert abs(boot - time.clock_gettime(time.CLOCK_BOOTTIME)) < 60
        self.move(0)


# Clients


def half_open(port: int, data: bytes) -> socket.socket:
    """A client that has sent ``data`` and will never read, write, or say that it has gone."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect(("127.0.0.1", port))
    connection.sendall(data)
    return connection


def wait_for(condition: Callable[[], bool], what: str, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"still not: {what}"
        time.sleep(0.02)


def proper(answer: httpx.Response) -> bool:
    """Whether an answer in bad times is as promised: no server's error but 503, and that with a time to come again."""
    return answer.status_code < 500 or (answer.status_code == 503 and int(answer.headers.get("retry-after", 0)) >= 1)
