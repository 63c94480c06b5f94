"""``python -m bench live``: viewers that move a slider of ``/{model}/live`` all at once.

Each sends changes at the rate of a mouse and gets pictures of the latest ones. What counts is the time from sending a change to having its
picture; changes that a later one overtook get none.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import sys
import time

from websockets.asyncio.client import ClientConnection, connect

from bench.serve import running
from tests.serving import free_port


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench live", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--config", default="default/config.toml")
    parser.add_argument("--model", default="faces")
    parser.add_argument("--direction", default="happy")
    parser.add_argument("--viewers", type=int, default=16)
    parser.add_argument("--rate", type=float, default=30.0, help="changes a second of each viewer")
    parser.add_argument("--seconds", type=float, default=10.0)
    options = parser.parse_args(argv)
    port = free_port()
    environment = {"STYLEGAN_TOML": options.config, "PORT": str(port)}
    with running([sys.executable, "main.py"], environment, f"http://127.0.0.1:{port}/readyz"):
        asyncio.run(press(f"ws://127.0.0.1:{port}/{options.model}/live", options, 2.0))
        report(options, asyncio.run(press(f"ws://127.0.0.1:{port}/{options.model}/live", options, options.seconds)))
    return 0


async def press(url: str, options: argparse.Namespace, seconds: float) -> list[float]:
    """The waiting times of all pictures, in seconds."""
    found = await asyncio.gather(*(view(url, number, options, seconds) for number in range(options.viewers)))
    return sorted(time for times in found for time in times)


async def view(url: str, number: int, options: argparse.Namespace, seconds: float) -> list[float]:
    sent: list[float] = []
    times: list[float] = []
    async with connect(url, max_size=1 << 24) as socket:
        listening = asyncio.create_task(listen(socket, sent, times))
        await asyncio.sleep(number / options.viewers / options.rate)  # mice do not move in step
        end = time.perf_counter() + seconds
        while (now := time.perf_counter()) < end:
            sent.append(now)
            amount = math.sin(3 * now + number)
            await socket.send(json.dumps({"seed": number, "directions": {options.direction: amount}}))
            await asyncio.sleep(1 / options.rate)
        await asyncio.sleep(1)
        if listening.done():
            listening.result()  # raises what went wrong
        listening.cancel()
    return times


async def listen(socket: ClientConnection, sent: list[float], times: list[float]) -> None:
    while True:
        told = json.loads(await socket.recv())
        if "detail" in told:
            raise SystemExit(told["detail"])
        await socket.recv()
        times.append(time.perf_counter() - sent[told["change"] - 1])


def report(options: argparse.Namespace, times: list[float]) -> None:
    p50, p95, p99 = (1000 * times[int(len(times) * share)] for share in (0.5, 0.95, 0.99))
    print(f"{options.model}, {time.strftime('%Y-%m-%d')}: {options.viewers} viewers, {options.rate:.0f} changes a second each")
    print(f"{len(times) / options.seconds:.0f} pictures/s; from change to picture p50 {p50:.0f} ms, p95 {p95:.0f} ms, p99 {p99:.0f} ms")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
