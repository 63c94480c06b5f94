"""A model's replica in a Ray cluster: the host of an engine process, asked by streaming calls instead of through a socket.

Ray Serve builds it on one of its nodes; nothing of Ray is needed here.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator

from msgspec.structs import replace

from api.conf import Config
from api.engine.host import Host, tune
from api.engine.wire import pack, unpack_all
from api.errors import ConfigError
from api.logs import attach_engine
from api.telemetry import Telemetry
from api.tracing import open_tracing

LOOK = 0.02  # seconds
BEAT = 2.0  # seconds after which who asked is told that the replica lives


class Caller:
    """Who asked: frames for it wait here until Ray takes them."""

    def __init__(self) -> None:
        self.frames: asyncio.Queue[bytes] = asyncio.Queue()

    def send(self, *messages: object) -> None:
        self.write(b"".join(map(pack, messages)))

    def write(self, frames: bytes) -> None:
        self.frames.put_nowait(frames)

    async def read(self) -> bytes:
        """The next frames; none if there is nothing to tell for a while."""
        try:
            async with asyncio.timeout(BEAT):
                return await self.frames.get()
        except TimeoutError:
            return b""


class Replica:
    """``settings`` is the configuration as JSON, with one model; ``version`` is told to who asks."""

    async def __init__(self, settings: str) -> None:  # type: ignore[misc]  # Ray awaits it, on the loop that serves
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s replica %(message)s")
        tune()
        config = Config.model_validate_json(settings)
        attach_engine(config.server.log)
        ((device, (model_id,)),) = config.devices().items()
        self.telemetry = Telemetry(config.server.tmp_dir, f"engine:{model_id}")
        self.tracing = open_tracing(config.trace, f"engine:{model_id}")
        self.host = Host(config, device, self.telemetry, self.tracing)
        self.telemetry.start()
        threading.Thread(target=self.host.work, name="lane", daemon=True).start()
        while self.host.loading:
            await asyncio.sleep(LOOK)
        if fault := self.host.failures.get(model_id):
            raise ConfigError(fault)

    async def run(self, frames: bytes) -> AsyncIterator[bytes]:
        """What becomes of a ``Submit``, whose deadline is in seconds from now. Who stops to listen cancels it."""
        (submit,) = unpack_all(frames)
        caller = Caller()
        self.host.clients[caller] = {}
        try:
            self.host.submit(caller, replace(submit, deadline=time.monotonic() + submit.deadline))
            while self.host.clients[caller] or not caller.frames.empty():
                yield await caller.read()
        finally:
            self.host.part(caller)

    async def hello(self) -> bytes:
        return pack(self.host.hello())

    async def count(self) -> int:
        """Pictures at work or waiting."""
        return sum(map(len, self.host.clients.values()))

    def __del__(self) -> None:
        if hasattr(self, "tracing"):
            self.telemetry.close()
            self.tracing.close()
