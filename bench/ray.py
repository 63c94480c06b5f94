"""What a request costs more on the way through Ray than through the socket: one model on this host, one request after the other, then many.

A small Ray node is started for it and ended.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from api.conf import Config, load_config
from api.engine.codec import Encoding
from api.engine.transport import Transport, build_transports
from api.models.jobs import Generate
from tests.checkpoints import tiny_precure
from tests.clusters import cluster
from tests.serving import ROOT, write_config

AT_ONCE = 32


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench ray", description=__doc__)
    parser.add_argument("--count", type=int, default=1000, help="requests of each measurement")
    count = parser.parse_args(argv).count
    with tempfile.TemporaryDirectory() as name, cluster() as node:
        folder = Path(name)
        tiny_precure(folder / "tiny.safetensors", levels=3)
        for engine, address in (("local", {}), ("ray", {"address": node.address})):
            toml = configure(folder, engine, **address)
            if address:
                subprocess.run([sys.executable, "-m", "api", "deploy", str(toml)], cwd=ROOT, check=True)
            single, many = asyncio.run(measure(load_config(toml), count))
            print(f"{engine:6} one by one: median {1000 * single:.2f} ms; {AT_ONCE} at once: {many:.0f} pictures/s")
        importlib.import_module("ray").shutdown()  # before its node ends
    return 0


def configure(folder: Path, engine: str, **cluster: str) -> Path:
    place = folder / engine
    place.mkdir()
    models = {"tiny": {"file": str(folder / "tiny.safetensors")}}
    return write_config(place, models, {"engine": {"threads": 1, "linger": 0.5}}, cluster={"engine": engine, **cluster})


async def measure(config: Config, count: int) -> tuple[float, float]:
    """Median seconds of a lone request, and pictures per second with many at once."""
    transport = build_transports(config)["tiny"]
    transport.open()
    try:
        await transport.info("tiny")
        for seed in range(20):
            await ask(transport, seed)
        singles = [await ask(transport, seed) for seed in range(count)]
        room = asyncio.Semaphore(AT_ONCE)

        async def one(seed: int) -> None:
            async with room:
                await ask(transport, seed)

        begun = time.perf_counter()
        await asyncio.gather(*(one(seed) for seed in range(count)))
        return float(np.median(singles)), count / (time.perf_counter() - begun)
    finally:
        await transport.close()


async def ask(transport: Transport, seed: int) -> float:
    begun = time.perf_counter()
    await transport.run(Generate(model="tiny", seed=seed), client="bench", encoding=Encoding("png"))
    return time.perf_counter() - begun
