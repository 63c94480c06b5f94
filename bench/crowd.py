"""Clients that press a server without costing much themselves: ``python -m bench.crowd`` reads JSON and writes JSON to a file it names.

A group either asks at a rate of its own, whatever becomes of the answers ("rate": an open loop), or each of its connections asks again when
it is answered. Each of its clients has an address of its own, by which the server tells them apart.

Clients on the cores that they press are in the way of what they measure, as those of other machines are not. So there are no layers here
but a loop over ``epoll``, which looks only every ``TICK`` for what is to be sent and what has come where all groups ask at rates. What
they wait longer for that is counted as the server's.
"""

from __future__ import annotations

import errno
import functools
import heapq
import itertools
import json
import random
import select
import socket
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

TICK = 0.005
"""Seconds."""
IDLE = 3.0
"""Seconds after which a connection is not used again: the server closes idle ones after five."""
WAIT = 30.0
"""Seconds after the end in which what is on its way may be answered."""
PATIENCE = 0.1
"""Seconds after which it looks whether the time is over, if nothing comes."""
PIECE = 1 << 18
"""Bytes that are read at once."""


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


class Client:
    def __init__(self, group: Group, number: int, tally: Tally) -> None:
        self.group, self.address, self.tally = group, address(number), tally
        self.idle: list[Line] = []
        self.made = 0

    def line(self) -> Line | None:
        """A connection that waits for nothing, if it may have one."""
        if self.idle:
            return self.idle.pop()
        if self.made < self.group.connections:
            self.made += 1
            return Line(self)
        return None


class Line:
    """A connection on which one request is out at a time; it is made anew as often as it takes."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.socket: socket.socket | None = None
        self.unsent = b""  # while it is being made
        self.due: float | None = None  # when what is out was to be asked
        self.rested = 0.0  # since when it waits for nothing
        self.got = b""
        self.awaited: int | None = None
        self.status = 0
        self.retry: float | None = None

    def dial(self, port: int) -> socket.socket:
        self.socket = made = socket.socket()
        made.setblocking(False)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        made.bind((self.client.address, 0))
        made.connect_ex(("127.0.0.1", port))  # what becomes of it is told by epoll
        return made

    def close(self) -> None:
        if self.socket is not None:
            self.socket.close()
        self.socket = None

    def take(self, data: bytes) -> bool:
        """Whether the answer is there."""
        self.got = self.got + data if self.got else data
        if self.awaited is None:
            self.read_head()
        return self.awaited is not None and len(self.got) >= self.awaited

    def read_head(self) -> None:
        end = self.got.find(b"\r\n\r\n")
        if end < 0:
            return
        head = self.got[: end + 2].lower()
        self.status = int(head[9:12])
        self.retry = None if self.status == 200 else read_field(head, b"\r\nretry-after: ")
        self.awaited = end + 4 + int(read_field(head, b"\r\ncontent-length: ") or 0)


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
        self.port, self.chance = port, random.Random(seed)
        self.seeds = itertools.count(seed)
        self.epoll = select.epoll()
        self.lines: dict[int, Line] = {}
        self.clients: dict[str, list[Client]] = {
            group.name: [Client(group, group.first + n, Tally()) for n in range(group.clients)] for group in groups
        }
        now = time.perf_counter()
        self.begin = now + lead
        self.end = self.begin + seconds
        self.coming = [(now, n) for n, group in enumerate(groups) if group.rate]  # when a group's next request is due; a heap
        self.groups = groups
        self.again: list[tuple[float, int, Line]] = []  # who asks again, and when; a heap
        self.order = itertools.count()
        self.closed = any(group.rate is None for group in groups)
        self.out = 0

    def run(self) -> None:
        for group in self.groups:
            if group.rate is None:
                for client in self.clients[group.name]:
                    for line in filter(None, [client.line() for _ in range(group.connections)]):
                        self.ask(line, time.perf_counter())
        while (now := time.perf_counter()) < self.end or (self.out and now < self.end + WAIT):
            self.come(now)
            if not self.closed:
                time.sleep(max(0.0, now + TICK - time.perf_counter()))
            for number, _ in self.epoll.poll(self.rest() if self.closed else 0):
                self.hear(self.lines[number])

    def rest(self) -> float:
        """Seconds until something is due."""
        due = [heap[0][0] - time.perf_counter() for heap in (self.coming, self.again) if heap and heap[0][0] <= self.end]
        return max(0.0, min([PATIENCE, *due]))

    def come(self, now: float) -> None:
        """Asks what is due. Requests come at random moments, as those of many people do."""
        while self.coming and self.coming[0][0] <= min(now, self.end):
            due, n = self.coming[0]
            group = self.groups[n]
            assert group.rate
            client = self.clients[group.name][int(self.chance.random() * group.clients)]
            line = client.line()
            if line is not None:
                self.ask(line, due)
            elif due >= self.begin:
                client.tally.unsent += 1
            heapq.heapreplace(self.coming, (due + self.chance.expovariate(group.rate), n))
        while self.again and self.again[0][0] <= min(now, self.end):
            self.ask(heapq.heappop(self.again)[2], now)

    def ask(self, line: Line, due: float) -> None:
        self.out += 1
        client = line.client
        client.tally.asked += self.begin <= due < self.end
        line.due, line.got, line.awaited = due, b"", None
        request = (b"%d" % (next(self.seeds) % 2**32)).join(split(client.group.request))
        if line.socket is not None and line.rested < time.perf_counter() - IDLE:
            self.drop(line)
        if line.socket is None:
            line.unsent = request
            number = line.dial(self.port).fileno()
            self.lines[number] = line
            self.epoll.register(number, select.EPOLLOUT)
        else:
            self.send(line, request)

    def send(self, line: Line, request: bytes) -> None:
        assert line.socket is not None
        try:
            sent = line.socket.send(request)
        except OSError:
            sent = 0
        if sent < len(request):
            self.drop(line)
            self.tell(line, "cut")

    def hear(self, line: Line) -> None:
        assert line.socket is not None
        if line.unsent:
            request, line.unsent = line.unsent, b""
            if error := line.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                self.drop(line)
                return self.tell(line, errno.errorcode[error])
            self.epoll.modify(line.socket.fileno(), select.EPOLLIN)
            return self.send(line, request)
        try:
            data = line.socket.recv(PIECE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.drop(line)
            if line.due is not None:
                self.tell(line, "cut")
        elif line.due is not None and line.take(data):
            self.tell(line, str(line.status))

    def drop(self, line: Line) -> None:
        assert line.socket is not None
        del self.lines[line.socket.fileno()]
        line.close()

    def tell(self, line: Line, what: str) -> None:
        """Notes what has become of a request."""
        assert line.due is not None
        self.out -= 1
        now, client = time.perf_counter(), line.client
        tally = client.tally
        refused = what in ("429", "503") and line.retry is not None
        if self.begin <= now < self.end:
            if what == "200":
                tally.served.append(now - line.due)
            elif refused:
                tally.refused.append(now - line.due)
        if what != "200" and not refused:
            fault = what + (" without Retry-After" if what in ("429", "503") else "")
            tally.faults[fault] = tally.faults.get(fault, 0) + 1
        line.due, line.rested = None, now
        if client.group.rate is not None:
            client.idle.append(line)
        elif now < self.end:
            if refused and client.group.patient:
                assert line.retry is not None
                heapq.heappush(self.again, (now + line.retry, next(self.order), line))
            else:
                self.ask(line, now)


def main() -> None:
    asked = json.load(sys.stdin)
    press = Press(asked["port"], [Group(**group) for group in asked["groups"]], asked["lead"], asked["seconds"], asked["seed"])
    press.run()
    found = {name: [asdict(client.tally) for client in clients] for name, clients in press.clients.items()}
    Path(asked["out"]).write_text(json.dumps({"groups": found, "cpu": time.process_time(), "unanswered": press.out}))


if __name__ == "__main__":
    main()
