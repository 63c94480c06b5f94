"""Simulated time, and what takes it: cores that threads share, and threads that do one thing after the other."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from heapq import heappop, heappush
from typing import Any

Call = Callable[[Any], None]
Task = tuple[float, int, float, Call, Any]


class Clock:
    """Calls what is due, in the order of time; of what is due at once, first what was asked for first."""

    def __init__(self) -> None:
        self.now = 0.0
        self.due: list[tuple[float, int, Call, Any]] = []
        self.count = 0

    def at(self, time: float, call: Call, argument: Any) -> None:
        self.count += 1
        heappush(self.due, (time, self.count, call, argument))

    def run(self, until: float = float("inf")) -> None:
        """Calls all that is due before ``until``; what it asks for too."""
        due = self.due
        while due and due[0][0] < until:
            self.now, _, call, argument = heappop(due)
            call(argument)
        if until < float("inf"):
            self.now = until


class Cores:
    """``count`` cores of a host, shared in equal parts by the threads that want them; 0: as many as are wanted.

    Work is measured in seconds that it takes while there are cores enough. Threads of a ``crowd`` are in each other's way besides, as
    those of one interpreter are: the k-th of its numbers is the speed that each has while k are at work. ``virtual`` is the work that
    a thread of either kind could have done so far, so that every piece of work has a fixed ``virtual`` at which it is done, whoever
    comes and goes.
    """

    def __init__(self, clock: Clock, count: int, crowd: Sequence[float] = ()) -> None:
        self.clock, self.count, self.crowd = clock, count or float("inf"), crowd
        self.free = not count
        self.tasks: tuple[list[Task], list[Task]] = ([], [])  # of others, of the crowd
        self.virtual, self.demand, self.rates = [0.0, 0.0], [0.0, 0.0], [1.0, 1.0]
        self.since = self.work = 0.0
        self.version = self.number = 0
        self.waking = False

    def run(self, seconds: float, width: float, call: Call, argument: Any, crowded: bool = False) -> None:
        """Has ``width`` threads work for ``seconds``, then calls."""
        self.work += seconds * width
        kind = int(crowded and len(self.crowd) > 0)
        if self.free and not kind:
            self.clock.at(self.clock.now + seconds, call, argument)
            return
        self.catch_up()
        self.number += 1
        heappush(self.tasks[kind], (self.virtual[kind] + seconds, self.number, width, call, argument))
        self.demand[kind] += width
        # Nothing changes for the others while there are cores enough for all.
        calm = not kind and self.demand[0] + self.demand[1] <= self.count and self.tasks[0][0][1] != self.number
        if not self.waking and not calm:
            self.plan()

    def catch_up(self) -> None:
        passed = self.clock.now - self.since
        if passed:
            self.virtual[0] += passed * self.rates[0]
            self.virtual[1] += passed * self.rates[1]
            self.since = self.clock.now

    def plan(self) -> None:
        others, crowd = self.tasks
        speed = self.crowd[min(len(crowd), len(self.crowd) - 1)] if crowd else 1.0
        demand = self.demand[0] + self.demand[1] * speed  # who waits for another thread leaves its core
        rate = 1.0 if demand <= self.count else self.count / demand
        self.rates[0], self.rates[1] = rate, rate * speed
        first = (others[0][0] - self.virtual[0]) / rate if others else float("inf")
        second = (crowd[0][0] - self.virtual[1]) / self.rates[1] if crowd else float("inf")
        self.version += 1
        self.clock.at(self.clock.now + max(0.0, min(first, second)), self.wake, (self.version, int(second < first)))

    def wake(self, due: tuple[int, int]) -> None:
        version, kind = due
        if version != self.version:
            return  # something has come meanwhile, for which there is another plan
        self.catch_up()
        self.waking = True
        tasks = self.tasks[kind]
        _, _, width, call, argument = heappop(tasks)
        self.demand[kind] = self.demand[kind] - width if tasks else 0.0
        call(argument)
        self.waking = False
        if self.tasks[0] or self.tasks[1]:
            self.plan()


class Loop:
    """A thread, such as an event loop's, that does one thing after the other on one core."""

    def __init__(self, cores: Cores) -> None:
        self.cores = cores
        self.waiting: deque[tuple[float, Call, Any]] = deque()
        self.busy = False
        self.work = 0.0

    def do(self, seconds: float, call: Call, argument: Any) -> None:
        if not seconds:
            call(argument)
            return
        self.work += seconds
        if self.busy:
            self.waiting.append((seconds, call, argument))
        else:
            self.busy = True
            self.cores.run(seconds, 1.0, self.done, (call, argument))

    def done(self, ended: tuple[Call, Any]) -> None:
        if self.waiting:
            seconds, call, argument = self.waiting.popleft()
            self.cores.run(seconds, 1.0, self.done, (call, argument))
        else:
            self.busy = False
        ended[0](ended[1])
