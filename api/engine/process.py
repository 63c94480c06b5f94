"""The engine process: one device's models behind one Unix socket, for all web workers of a host.

``python -m api.engine.process DEVICE SOCKET`` reads the configuration as JSON from standard input. The process holds a kernel
lock while it lives, so that there is one per socket; it leaves when its last client has been gone for a while.
"""

from __future__ import annotations

import asyncio
import fcntl
import itertools
import logging
import os
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

import uvloop

from api.conf import Config
from api.engine.begun import open_begun
from api.engine.host import Host, Peer, Request, tune
from api.engine.socket import reach
from api.engine.wire import Connection, Diary
from api.logs import attach_engine
from api.telemetry import Telemetry
from api.tracing import Tracing, open_tracing

LONELY = 10.0  # seconds that a new engine waits for its first client


class Process(Host):
    """A host behind a socket, which leaves after its last client."""

    def __init__(self, config: Config, device: str, telemetry: Telemetry, tracing: Tracing, claim: Claim) -> None:
        super().__init__(config, device, telemetry, tracing)
        self.claim, self.begun = claim, open_begun(claim.path)
        self.numbers = itertools.count(1)
        self.linger = config.server.engine.linger
        # Who started this process may have died before it could connect.
        self.closing: asyncio.TimerHandle | None = self.loop.call_later(max(self.linger, LONELY), self.left.set)

    def connect(self) -> Connection:
        return Guest(self)

    def welcome(self, peer: Peer) -> None:
        if self.begun is not None and isinstance(peer, Guest):
            peer.number = next(self.numbers)
            peer.send(Diary(str(self.begun.path), peer.number))
        if self.closing is not None:
            self.closing.cancel()
            self.closing = None
        super().welcome(peer)

    def part(self, peer: Peer) -> None:
        super().part(peer)
        if not self.clients:
            self.closing = self.loop.call_later(self.linger, self.left.set)

    def drain(self) -> None:
        if not self.draining:
            self.claim.release()  # gives the socket's name to a successor
            super().drain()

    def post(self, frames: Mapping[Peer, bytes], ended: Sequence[Request] = ()) -> None:
        self.deliver(frames, ended)  # a turn of the event loop before would cost a lone picture a tenth of a millisecond

    def note(self, request: Request) -> bool:
        if self.begun is None or not isinstance(request.peer, Guest):
            return False
        self.begun.note(request.peer.number, request.id)
        return True


class Guest(Connection):
    """A client's end in the engine. Any thread may write to it, straight to the socket as long as that takes everything."""

    number = 0

    def __init__(self, host: Process) -> None:
        super().__init__(host.receive, host.part)
        self.host = host
        self.guard = threading.Lock()
        self.socket: int | None = None  # our own, so that it is no other file by the time that a thread writes
        self.waiting = 0  # pieces for the event loop to send

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.socket = os.dup(transport.get_extra_info("socket").fileno())
        self.host.welcome(self)

    def connection_lost(self, exc: Exception | None) -> None:
        with self.guard:
            if self.socket is not None:
                os.close(self.socket)
            self.socket = None
        super().connection_lost(exc)

    def write(self, frames: bytes) -> None:
        with self.guard:
            if self.socket is None or self.transport is None or self.transport.is_closing():
                return
            sent = 0
            if not self.waiting and not self.transport.get_write_buffer_size():
                try:
                    sent = os.write(self.socket, frames)
                except BlockingIOError:
                    pass
                except OSError:
                    return  # it is gone, as the event loop will hear
            if sent < len(frames):
                self.waiting += 1
                self.host.loop.call_soon_threadsafe(self.catch_up, frames[sent:])

    def catch_up(self, frames: bytes) -> None:
        super().write(frames)
        with self.guard:
            self.waiting -= 1


class Claim:
    """The right to a socket's name: a kernel lock on the file beside it, so that it ends with the process at the latest."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self.handle = os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self.held = True
        try:
            fcntl.flock(self.handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.held = False

    def release(self) -> None:
        if self.held:
            self.held = False
            self.path.unlink(missing_ok=True)
            os.close(self.handle)


async def serve(config: Config, device: str, claim: Claim) -> None:
    """Serves until the last client has left or SIGTERM has drained the lane."""
    telemetry = Telemetry(config.server.tmp_dir, f"engine:{device}")
    tracing = open_tracing(config.trace, f"engine:{device}")
    host = Process(config, device, telemetry, tracing, claim)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, host.drain)
    if claim.path.exists():
        telemetry.count("engine_restarts", device=device)  # a predecessor had no time to clear away
        claim.path.unlink()
    before = os.umask(0o177)
    try:
        server = await loop.create_unix_server(host.connect, reach(claim.path), backlog=1024)
    finally:
        os.umask(before)
    telemetry.start()
    threading.Thread(target=host.work, name="lane", daemon=True).start()
    await host.left.wait()
    claim.release()
    server.close()
    await flush(host)
    if host.begun is not None:
        host.begun.remove()
    telemetry.close()
    tracing.close()


async def flush(host: Process) -> None:
    """Gives the clients a moment to read what was sent."""
    for peer in list(host.clients):
        if isinstance(peer, Connection):
            peer.close()
    for _ in range(100):
        if not host.clients:
            return
        await asyncio.sleep(0.02)


def main(device: str, path: str) -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s engine %(message)s")
    tune()
    config = Config.model_validate_json(sys.stdin.buffer.read())
    attach_engine(config.server.log)
    claim = Claim(Path(path))
    if not claim.held:
        return
    uvloop.run(serve(config, device, claim))
    # The interpreter's own end would wait for threads in a network's kernels; everything is sent and flushed.
    logging.shutdown()
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
