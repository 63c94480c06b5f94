"""``python -m bench streams``: what open event streams cost that have nothing to tell.

Streams of a task that never runs are opened; the rate of other work, and the CPU time of an idle web worker, are measured with and
without them.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import statistics
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from bench.serve import measure, running
from tests.serving import ROOT, free_port, write_config

TASK = b'{"params_type": "generate", "seed": 1}'


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench streams", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--streams", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        model = {"file": str(ROOT / "default" / "models" / "faces.safetensors")}
        config = write_config(Path(folder), {"faces": model}, tasks={"parallel": 0})
        port = free_port()
        environment = {"STYLEGAN_TOML": str(config), "PORT": str(port)}
        with running([sys.executable, "main.py"], environment, f"http://127.0.0.1:{port}/readyz") as pid:
            compare(port, pid, options)
    return 0


def compare(port: int, pid: int, options: argparse.Namespace) -> None:
    url = f"http://127.0.0.1:{port}"
    request = urllib.request.Request(f"{url}/task", TASK, {"Content-Type": "application/json"})
    task_id = urllib.request.urlopen(request).read().decode().strip('"')
    rates: dict[int, list[float]] = {0: [], options.streams: []}
    idle: dict[int, list[float]] = {0: [], options.streams: []}
    for _ in range(options.rounds):
        for count in rates:
            with streams(port, task_id, count):
                before = cpu_seconds(pid)
                time.sleep(options.seconds)
                idle[count].append((cpu_seconds(pid) - before) / options.seconds)
                rates[count].append(measure(["bench.load", f"{url}/faces/generate?seed={{seed}}", "8", str(options.seconds)])["rate"])
    print(f"{time.strftime('%Y-%m-%d')}, medians of {options.rounds} rounds\n")
    print("| open streams | pictures/s, 8 clients | CPU time of the idle web worker |\n|---|---|---|")
    for count in rates:
        print(f"| {count} | {statistics.median(rates[count]):.0f} | {statistics.median(idle[count]):.2%} of a core |")


@contextlib.contextmanager
def streams(port: int, task_id: str, count: int) -> Iterator[None]:
    """So many connections that have heard the task's first event."""
    with contextlib.ExitStack() as stack:
        for _ in range(count):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            connection.sendall(f"GET /task/{task_id}/events HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            heard = b""
            while b"event: pending" not in heard:
                heard += connection.recv(4096)
        yield


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
