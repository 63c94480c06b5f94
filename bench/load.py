"""A load generator that costs little: CLIENTS connections, each sending its next request when the last is answered.

``python -m bench.load URL CLIENTS SECONDS [BODY]`` prints JSON: answers a second, milliseconds (quantiles and the mean), statuses.
``{seed}`` in the URL or in BODY becomes a different number each time. A lone client waits in the kernel, without an event loop, whose
own way to an answer is not the server's: its clock runs from the bytes of the request to those of the answer.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import socket
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
        if not self.awaited:
            self.awaited = measure(self.got)
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


def measure(got: bytearray) -> int:
    """Bytes of a whole answer, head and body, of which some have come; 0 until its head has."""
    if (head := got.find(b"\r\n\r\n")) < 0:
        return 0
    start = bytes(got[:head]).lower().index(LENGTH) + len(LENGTH)
    return head + 4 + int(got[start : got.index(b"\r", start)])


def ask_alone(make: Callable[[], bytes], host: str, port: int, end: float, times: list[float], statuses: Counter[str]) -> None:
    with socket.create_connection((host, port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while time.perf_counter() < end:
            request, got, awaited = make(), bytearray(), 0
            begun = time.perf_counter()
            connection.sendall(request)
            while not awaited or len(got) < awaited:
                piece = connection.recv(1 << 20)
                now = time.perf_counter()
                if not piece:
                    raise ConnectionError("the server hung up")
                got += piece
                awaited = awaited or measure(got)
            times.append(now - begun)
            statuses[got[9:12].decode()] += 1


async def ask_together(
    make: Callable[[], bytes], host: str, port: int, end: float, times: list[float], statuses: Counter[str], clients: int
) -> None:
    loop = asyncio.get_running_loop()
    made = [await loop.create_connection(lambda: Client(make, end, times, statuses), host, port) for _ in range(clients)]
    await asyncio.gather(*(client.done for _, client in made))


def main(url: str, clients: int, seconds: float, body: str | None) -> None:
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
    press = (make, parts.hostname or "localhost", parts.port or 80, begun + seconds, times, statuses)
    if clients == 1:
        ask_alone(*press)
    else:
        uvloop.run(ask_together(*press, clients))
    spent = time.perf_counter() - begun
    times.sort()
    quantiles = {f"p{share}": 1000 * times[int(len(times) * share / 100)] for share in (50, 95, 99)}
    mean = 1000 * sum(times) / len(times)
    print(json.dumps({"rate": len(times) / spent, **quantiles, "mean": mean, "statuses": statuses}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), sys.argv[4] if len(sys.argv) > 4 else None)
