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
from urllib.parse import urlsplit

import uvloop


async def main(url: str, clients: int, seconds: float, body: str | None) -> None:
    parts = urlsplit(url)
    seeds = itertools.count(int(time.time()))
    times: list[float] = []
    statuses: dict[int, int] = {}
    end = time.perf_counter() + seconds

    def request() -> bytes:
        seed = str(next(seeds) % 2**32)
        target = f"{parts.path}?{parts.query}".rstrip("?").replace("{seed}", seed)
        content = (body or "").replace("{seed}", seed).encode()
        head = f"POST {target} HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
        return head.encode() + content

    async def client() -> None:
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port, limit=1 << 24)
        while (begun := time.perf_counter()) < end:
            writer.write(request())
            head = await reader.readuntil(b"\r\n\r\n")
            lines = head.decode("latin-1").lower().split("\r\n")
            length = next(int(line.split(":")[1]) for line in lines if line.startswith("content-length:"))
            await reader.readexactly(length)
            status = int(lines[0].split()[1])
            statuses[status] = statuses.get(status, 0) + 1
            times.append(time.perf_counter() - begun)
        writer.close()

    begun = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    spent = time.perf_counter() - begun
    times.sort()
    report = {
        "rate": len(times) / spent,
        "p50": 1000 * times[len(times) // 2],
        "p95": 1000 * times[int(len(times) * 0.95)],
        "p99": 1000 * times[int(len(times) * 0.99)],
        "statuses": statuses,
    }
    print(json.dumps(report))


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), sys.argv[4] if len(sys.argv) > 4 else None))
