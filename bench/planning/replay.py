"""Sends a trace to a server as it is, whether the server keeps up or not, and notes how long each request took from when it was due.

``python -m bench.planning.replay URL TRACE OUT`` writes the seconds of each request as ``.npy``, NaN where the answer was not 200, and
prints JSON: statuses and the CPU seconds that it took. ``{model}``, ``{count}`` and ``{seed}`` in the URL are the request's own. One
thread waits with ``select``, because event loops wait in whole milliseconds.
"""

from __future__ import annotations

import gc
import json
import select
import socket
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

from bench.planning.arrivals import Trace, read

PATIENCE = 60.0  # seconds after the last arrival


@dataclass(eq=False, slots=True)
class Line:
    """A connection, with the request that it is at."""

    socket: socket.socket
    number: int = -1
    received: bytearray = field(default_factory=bytearray)
    wanted: int = -1  # bytes of the whole answer, once its head is there
    status: int = 0

    def fileno(self) -> int:
        return self.socket.fileno()


class Replay:
    def __init__(self, url: str, trace: Trace) -> None:
        self.parts, self.trace = urlsplit(url), trace
        self.idle: list[Line] = []
        self.busy: set[Line] = set()
        self.begun = 0.0
        self.seconds = np.full(len(trace), np.nan)
        self.statuses: Counter[int] = Counter()

    def run(self) -> None:
        for _ in range(16):
            self.idle.append(self.connect())
        due = self.trace.seconds.tolist()
        self.begun, number = time.perf_counter() + 0.2, 0
        end = due[-1] + PATIENCE
        while (number < len(due) or self.busy) and (now := time.perf_counter() - self.begun) < end:
            if number < len(due) and due[number] <= now:
                self.send(number)
                number += 1
                continue
            wait = due[number] - now if number < len(due) else 1.0
            ready, _, _ = select.select(self.busy, (), (), min(wait, 1.0))
            for line in ready:
                self.receive(line)

    def connect(self) -> Line:
        assert self.parts.hostname
        made = socket.create_connection((self.parts.hostname, self.parts.port or 80))
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return Line(made)

    def take(self) -> Line:
        """A connection that nothing waits on; the server closes those that were idle for long."""
        while self.idle:
            line = self.idle.pop()
            if not select.select((line,), (), (), 0)[0]:
                return line
            line.socket.close()
        return self.connect()

    def send(self, number: int) -> None:
        line = self.take()
        model, count = self.trace.names[self.trace.models[number]], str(self.trace.counts[number])
        target = f"{self.parts.path}?{self.parts.query}".replace("{model}", model).replace("{count}", count).replace("{seed}", str(number))
        line.number, line.wanted = number, -1
        line.received.clear()
        line.socket.sendall(f"POST {target} HTTP/1.1\r\nHost: {self.parts.netloc}\r\nContent-Length: 0\r\n\r\n".encode())
        self.busy.add(line)

    def receive(self, line: Line) -> None:
        part = line.socket.recv(1 << 18)
        line.received += part
        if line.wanted < 0 and (head := line.received.find(b"\r\n\r\n")) >= 0:
            lines = bytes(line.received[:head]).lower().split(b"\r\n")
            line.status = int(lines[0].split()[1])
            line.wanted = head + 4 + next(int(text[15:]) for text in lines if text.startswith(b"content-length:"))
        if not part or 0 <= line.wanted <= len(line.received):
            self.busy.remove(line)
            self.statuses[line.status if part else 0] += 1
            if line.status == 200 and part:
                self.seconds[line.number] = time.perf_counter() - self.begun - self.trace.seconds[line.number]
            if part:
                self.idle.append(line)


def main(url: str, trace: str, out: str) -> None:
    replay = Replay(url, read(Path(trace)))
    gc.disable()
    before = time.process_time()
    replay.run()
    spent = time.process_time() - before
    np.save(out, replay.seconds)
    print(json.dumps({"statuses": replay.statuses, "cpu": spent}))


if __name__ == "__main__":
    main(*sys.argv[1:])
