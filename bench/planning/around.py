"""What a picture costs around its device where everything is on: limits in Redis, the history in PostgreSQL, pictures in a folder.

``python -m bench.planning.around [COUNT]`` serves faces and tells the CPU seconds of each part for a picture, and the bytes that it
keeps. Redis and PostgreSQL are started for it, as for the tests.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import sys
import tempfile
from pathlib import Path

import redis

from bench.planning.arrivals import poisson
from bench.planning.measure import TICKS, Served, cpu_of
from tests import databases, redises
from tests.serving import ROOT, serve, write_config

RATE = 40.0  # requests a second, which is little


def main(count: int) -> None:
    postgres, cache = databases.cluster(), redises.shared()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder, url = Path(name), postgres.create()
        limit = {"concurrency": {"enabled": True, "max_concurrency": 200}, "rate": {"enabled": True, "max_request": 10**6}}
        path = write_config(
            folder,
            {"faces": {"file": str(ROOT / "default" / "models" / "faces.safetensors")}},
            {"limit": limit, "engine": {"linger": 1.0}},
            store={"url": url, "history": True},
            cluster={"redis": cache.new_url()},
            blobs={"expire": 0.0},
        )
        with serve(path) as running:
            served = Served(running, "faces", folder)
            served.take(poisson(RATE, 2.0, 1, "faces"))
            (before, stored), asked = snapshot(served, url), commands(cache)
            trace = poisson(RATE, count / RATE, 2, "faces")
            statuses = served.take(trace).statuses
            (after, kept), told = snapshot(served, url), commands(cache)
    made = statuses["200"]
    for part in before:
        print(f"{part}: {1000 * (after[part] - before[part]) / made:.3f} ms of a core")
    for part in stored:
        print(f"{part}: {(kept[part] - stored[part]) / made:.0f} bytes")
    print(f"Redis: {(told - asked) / made:.1f} commands; statuses {statuses}")


def snapshot(served: Served, url: str) -> tuple[dict[str, float], dict[str, float]]:
    """CPU seconds and bytes so far."""
    web, _ = served.spent()
    cache, postmaster = redises.shared().process, (databases.cluster().folder / "data" / "postmaster.pid").read_text().split()[0]
    assert cache is not None
    cpu = {
        "web worker": web,
        "engine": cpu_of(f"{served.engine}"),
        "Redis": cpu_of(f"{cache.pid}"),
        "PostgreSQL": cpu_of_all(int(postmaster)),
    }
    files = sum(file.stat().st_size for file in (served.folder / "data").rglob("*") if file.is_file())
    return cpu, {"PostgreSQL": asyncio.run(database_size(url)), "pictures and thumbnails": files}


async def database_size(url: str) -> float:
    connection = await importlib.import_module("asyncpg").connect(url)
    try:
        await connection.execute("CHECKPOINT")
        found: float = await connection.fetchval("SELECT pg_database_size(current_database())")
        return found
    finally:
        await connection.close()


def commands(cache: redises.RedisServer) -> int:
    with redis.Redis(unix_socket_path=str(cache.socket)) as client:
        told = client.info("stats")
    return int(told["total_commands_processed"])


def cpu_of_all(parent: int) -> float:
    """CPU seconds of a process and its children, those that have ended too."""
    total = 0.0
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            fields = (entry / "stat").read_text().rpartition(")")[2].split() if entry.name.isdigit() else []
            if fields and parent in (int(fields[1]), int(entry.name)):
                total += sum(map(int, fields[11:15])) / TICKS
    return total


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 400)
