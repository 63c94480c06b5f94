"""A load generator that costs little: CLIENTS connections, each sending its next request when the last is answered.

``python -m bench.load URL CLIENTS SECONDS [BODY]`` prints JSON: answers a second, milliseconds, statuses. ``{seed}`` in the URL or
in BODY becomes a different number each time.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import cast
from urllib.parse import urlsplit

import uvloop

LENGTH = b"content-length: "


class Client(asyncio.Protocol):
    """One connection. ``done`` is set when it is closed after ``end``."""

    def __init__(self, make: Callable[[], bytes], end: float, times: list[float], statuses: Counter[str]) -> None:
        self.make, self.end, self.times, self.statuses = make, end, times, statuses
        self.got = bytearray()
        self.awaited = 0  # bytes of the whole answer, 0 until its head is there
        self.done = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.ask()

    def ask(self) -> None:
        self.begun = time.perf_counter()
        if self.begun >= self.end:
            return self.transport.close()
        self.transport.write(self.make())

    def data_received(self, data: bytes) -> None:
        self.got += data
        if not self.awaited and (head := self.got.find(b"\r\n\r\n")) >= 0:
            start = bytes(self.got[:head]).lower().index(LENGTH) + len(LENGTH)
            self.awaited = head + 4 + int(self.got[start : self.got.index(b"\r", start)])
        if self.awaited and len(self.got) >= self.awaited:
            self.times.append(time.perf_counter() - self.begun)
            self.statuses[self.got[9:12].decode()] += 1
            self.awaited = 0
            self.got.clear()
            self.ask()

    def connection_lost(self, exc: Exception | None) -> None:
        if time.perf_counter() < self.end:
            self.done.set_exception(exc or ConnectionError("the server hung up"))
        else:
            self.done.set_result(None)


async def main(url: str, clients: int, seconds: float, body: str | None) -> None:
    parts = urlsplit(url)
    seeds = itertools.count(int(time.time()))
    target = f"{parts.path}?{parts.query}".rstrip("?")

    def make() -> bytes:
        seed = str(next(seeds) % 2**32)
        content = (body or "").replace("{seed}", seed).encode()
        fields = f"Host: {parts.netloc}\r\nContent-Type: application/json\r\nContent-Length: {len(content)}"
        return f"POST {target.replace('{seed}', seed)} HTTP/1.1\r\n{fields}\r\n\r\n".encode() + content

    begun = time.perf_counter()
    times: list[float] = []
    statuses = Counter[str]()
    loop = asyncio.get_running_loop()
    made = [
        await loop.create_connection(
            lambda: Client(make, begun + seconds, times, statuses), parts.hostname or "localhost", parts.port or 80
        )
        for _ in range(clients)
    ]
    await asyncio.gather(*(client.done for _, client in made))
    spent = time.perf_counter() - begun
    times.sort()
    quantiles = {f"p{share}": 1000 * times[int(len(times) * share / 100)] for share in (50, 95, 99)}
    print(json.dumps({"rate": len(times) / spent, **quantiles, "statuses": statuses}))


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), sys.argv[4] if len(sys.argv) > 4 else None))
