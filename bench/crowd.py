"""Clients that press a server without costing much themselves: ``python -m bench.crowd`` reads JSON and writes JSON to a file it names.

A group either asks at a rate of its own, whatever becomes of the answers ("rate": an open loop), or each of its connections asks again when
it is answered. Each of its clients has an address of its own, by which the server tells them apart.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import json
import random
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import uvloop

IDLE = 3.0
"""Seconds after which a connection is not used again: the server closes idle ones after five."""
WAIT = 30.0
"""Seconds after the end in which what is on its way may be answered."""


@dataclass(frozen=True)
class Group:
    name: str
    first: int
    """Number of its first client: 0 is 127.1.0.1."""
    clients: int
    connections: int = 1
    """Of each client, at most."""
    rate: float | None = None
    """Requests a second of all its clients together; without it each connection asks when it is answered."""
    request: str = "POST /faces/generate?seed={seed}"
    patient: bool = True
    """Waits as long as a refusal says before it asks again, in a closed loop."""


@dataclass
class Tally:
    """What a client was answered within the time that counts."""

    served: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)
    faults: dict[str, int] = field(default_factory=dict)
    asked: int = 0
    unsent: int = 0


def address(number: int) -> str:
    return f"127.1.{number // 250}.{number % 250 + 1}"


class Line(asyncio.Protocol):
    """A connection on which one request is out at a time."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.got = b""
        self.awaited: int | None = None
        self.status = 0
        self.retry: float | None = None
        self.told: Callable[[str, float | None], None] | None = None
        self.rested = 0.0

    def fresh(self) -> bool:
        """Whether it can be used again; if not, it is closed."""
        if self.transport is not None and time.perf_counter() > self.rested + IDLE:
            self.transport.close()
            self.transport = None
        return self.transport is not None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def connection_lost(self, error: Exception | None) -> None:
        self.transport = None
        self.tell("cut")

    def ask(self, request: bytes, told: Callable[[str, float | None], None]) -> None:
        """``told`` is called once with the status, or what went wrong, and the seconds of Retry-After."""
        assert self.transport is not None
        self.told = told
        self.got = b""
        self.awaited = None
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        self.got = self.got + data if self.got else data
        if self.awaited is None:
            self.read_head()
        if self.awaited is not None and len(self.got) >= self.awaited:
            self.tell(str(self.status))

    def read_head(self) -> None:
        end = self.got.find(b"\r\n\r\n")
        if end < 0:
            return
        head = self.got[: end + 2].lower()
        self.status = int(head[9:12])
        self.retry = None if self.status == 200 else read_field(head, b"\r\nretry-after: ")
        self.awaited = end + 4 + int(read_field(head, b"\r\ncontent-length: ") or 0)

    def tell(self, what: str) -> None:
        told, self.told = self.told, None
        if told is not None:
            told(what, self.retry)


@functools.cache
def split(request: str) -> list[bytes]:
    """A request's bytes around its seed."""
    return f"{request} HTTP/1.1\r\nHost: bench\r\nContent-Length: 0\r\n\r\n".encode().split(b"{seed}")


def read_field(head: bytes, name: bytes) -> float | None:
    """A number in a head; nothing else of it is looked at, since each request costs the server's cores what it costs here."""
    start = head.find(name) + len(name)
    return float(head[start : head.index(b"\r", start)]) if start >= len(name) else None


class Press:
    """Runs groups against a port for a while; counts what is asked and what is answered from ``lead`` seconds on to the end."""

    def __init__(self, port: int, groups: list[Group], lead: float, seconds: float, seed: int) -> None:
        self.port, self.groups, self.chance = port, groups, random.Random(seed)
        self.seeds = itertools.count(seed)
        self.begin = time.perf_counter() + lead
        self.end = self.begin + seconds
        self.tallies: dict[int, Tally] = {}
        self.out = 0

    async def run(self) -> None:
        await asyncio.gather(*(self.open_loop(group) if group.rate else self.closed_loop(group) for group in self.groups))
        limit = time.perf_counter() + WAIT
        while self.out and time.perf_counter() < limit:
            await asyncio.sleep(0.02)

    async def dial(self, number: int) -> Line:
        loop = asyncio.get_running_loop()
        _, line = await loop.create_connection(Line, "127.0.0.1", self.port, local_addr=(address(number), 0))
        return line

    def request(self, group: Group) -> bytes:
        return (b"%d" % (next(self.seeds) % 2**32)).join(split(group.request))

    def ask(self, group: Group, tally: Tally, line: Line, scheduled: float, then: Callable[[bool, float | None], None]) -> None:
        """``then`` is told whether the line can be used again, and how long a refusal asks to wait."""
        self.out += 1
        tally.asked += self.begin <= scheduled < self.end

        def told(what: str, retry: float | None) -> None:
            self.out -= 1
            now = time.perf_counter()
            refused = what in ("429", "503") and retry is not None
            if self.begin <= now < self.end:
                if what == "200":
                    tally.served.append(now - scheduled)
                elif refused:
                    tally.refused.append(now - scheduled)
            if what != "200" and not refused:
                fault = what + (" without Retry-After" if what in ("429", "503") else "")
                tally.faults[fault] = tally.faults.get(fault, 0) + 1
            then(line.transport is not None, retry if refused else None)

        line.ask(self.request(group), told)

    async def closed_loop(self, group: Group) -> None:
        await asyncio.gather(*(self.ask_again(group, group.first + n) for n in range(group.clients) for _ in range(group.connections)))

    async def ask_again(self, group: Group, number: int) -> None:
        tally = self.tallies.setdefault(number, Tally())
        line = await self.dial(number)
        while (now := time.perf_counter()) < self.end:
            answered: asyncio.Future[tuple[bool, float | None]] = asyncio.get_running_loop().create_future()
            self.ask(group, tally, line, now, lambda *found, answered=answered: answered.set_result(found))
            alive, retry = await answered
            if retry is not None and group.patient:
                await asyncio.sleep(min(retry, max(0.0, self.end - time.perf_counter())))
            if not alive:
                line = await self.dial(number)

    async def open_loop(self, group: Group) -> None:
        """Requests come at random moments, as those of many people do."""
        assert group.rate
        rate = group.rate
        tallies = [self.tallies.setdefault(group.first + n, Tally()) for n in range(group.clients)]
        idle: list[list[Line]] = [[] for _ in tallies]
        made = [0] * group.clients
        dialling = set[asyncio.Task[None]]()
        loop, over = asyncio.get_running_loop(), asyncio.Event()
        due = time.perf_counter()

        def come() -> None:
            """Sends what is due, without the task that sleeps in between: it would cost more than the request."""
            nonlocal due
            while (rest := due - time.perf_counter()) < 0.001:
                if due >= self.end:
                    return over.set()
                ask(int(self.chance.random() * group.clients))
                due += self.chance.expovariate(rate)
            loop.call_later(rest, come)

        def ask(n: int) -> None:
            while idle[n] and not idle[n][-1].fresh():
                idle[n].pop()
                made[n] -= 1
            if idle[n]:
                self.send(group, tallies[n], idle[n].pop(), idle[n], due)
            elif made[n] < group.connections:
                made[n] += 1
                task = asyncio.create_task(self.send_first(group, tallies[n], group.first + n, idle[n], due))
                dialling.add(task)
                task.add_done_callback(dialling.discard)
            elif due >= self.begin:
                tallies[n].unsent += 1

        come()
        await over.wait()
        await asyncio.gather(*dialling)

    async def send_first(self, group: Group, tally: Tally, number: int, idle: list[Line], due: float) -> None:
        self.send(group, tally, await self.dial(number), idle, due)

    def send(self, group: Group, tally: Tally, line: Line, idle: list[Line], due: float) -> None:
        def back(_: bool, __: float | None) -> None:
            line.rested = time.perf_counter()
            idle.append(line)  # a dead one is seen to be so when its turn comes

        self.ask(group, tally, line, due, back)


def main() -> None:
    asked = json.load(sys.stdin)
    groups = [Group(**group) for group in asked["groups"]]

    async def run() -> Press:
        press = Press(asked["port"], groups, asked["lead"], asked["seconds"], asked["seed"])
        await press.run()
        return press

    press = uvloop.run(run())
    found = {
        group.name: [asdict(tally) for n in range(group.clients) for tally in [press.tallies.get(group.first + n, Tally())]]
        for group in groups
    }
    Path(asked["out"]).write_text(json.dumps({"groups": found, "cpu": time.process_time(), "unanswered": press.out}))


if __name__ == "__main__":
    main()
