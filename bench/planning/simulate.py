"""A trace against hosts with web workers, devices and encoders, as a simulation of discrete events."""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from api.waiting import TOGETHER
from bench.planning.arrivals import Trace
from bench.planning.clockwork import Clock, Cores, Loop
from bench.planning.costs import Costs
from bench.planning.lanes import Job, Lane

ANSWERED, REFUSED, LATE = 0, 1, 2
LUMP = 1000  # arrivals that are looked at together


@dataclass(frozen=True)
class Result:
    """What became of a trace. Latencies are in seconds, of answered requests alone, in the order of arrival; shares are of the span."""

    gpus: int
    span: float  # from the trace's beginning to the last answer
    latencies: NDArray[np.float64]
    refused: int
    late: int
    pictures: int
    batches: Counter[int]
    device: float  # share of time that the devices were at work
    encoder: float  # and the encoders' threads
    worker: float  # and the web workers
    cores: float  # of all hosts that were at work on the average

    @property
    def answered(self) -> int:
        return len(self.latencies)

    @property
    def rate(self) -> float:
        """Pictures a second."""
        return self.pictures / self.span if self.span else 0.0

    def percentile(self, percent: float) -> float:
        return float(np.percentile(self.latencies, percent)) if self.answered else float("inf")

    @property
    def mean_batch(self) -> float:
        return sum(size * count for size, count in self.batches.items()) / max(1, self.batches.total())


class Request:
    __slots__ = ("client", "deadline", "jobs", "key", "left", "number", "unsent", "web")

    def __init__(self, number: int, key: tuple[int, int], count: int, client: int, web: Web) -> None:
        self.number, self.key, self.left, self.client, self.web = number, key, count, client, web
        self.unsent = count
        self.deadline = 0.0
        self.jobs: list[Job] | None = [] if count > 1 else None


class Host:
    """Cores with the web workers on them, and the lanes that those ask."""

    def __init__(self, clock: Clock, costs: Costs) -> None:
        self.cores = Cores(clock, costs.cores, costs.crowd)
        self.webs = [Web(self.cores) for _ in range(costs.workers)]


class Web(Loop):
    """A web worker, with the lanes that it asks."""

    def __init__(self, cores: Cores) -> None:
        super().__init__(cores)
        self.lanes: list[Lane] = []


class World:
    """Requests go round the web workers in turn; each picture goes to the device with less to do of two."""

    def __init__(self, trace: Trace, costs: Costs, gpus: int, seed: int) -> None:
        self.trace, self.costs = trace, costs
        self.clock = Clock()
        self.random = random.Random(seed)
        self.hosts = [Host(self.clock, costs) for _ in range(-(-gpus // costs.devices))]
        self.lanes = [
            Lane(self.clock, self.hosts[number // costs.devices].cores, costs, trace.names, self.computed, self.lost, self.random)
            for number in range(gpus)
        ]
        for number, host in enumerate(self.hosts):
            for web in host.webs:
                web.lanes = self.lanes[number * costs.devices : (number + 1) * costs.devices] if costs.local else self.lanes
        self.client = Loop(self.hosts[0].cores)
        self.turn = deque(web for webs in zip(*(host.webs for host in self.hosts), strict=True) for web in webs)
        self.latencies = np.full(len(trace), np.nan)
        self.fates = np.full(len(trace), ANSWERED, np.int8)
        self.ended = self.pictures = 0
        self.own = [costs.models[name].steps for name in trace.names]

    def run(self) -> None:
        trace, clock = self.trace, self.clock
        for start in range(0, len(trace), LUMP):
            lump = slice(start, start + LUMP)
            rows = zip(
                trace.seconds[lump].tolist(),
                trace.models[lump].tolist(),
                trace.counts[lump].tolist(),
                trace.steps[lump].tolist(),
                trace.clients[lump].tolist(),
                strict=True,
            )
            for number, (second, model, count, steps, client) in enumerate(rows, start):
                clock.run(second)
                web = self.turn[0]
                self.turn.rotate(-1)
                own = self.own[model]
                request = Request(number, (model, (steps or own) if own else 0), count, client, web)
                self.client.do(self.costs.client / 2, self.come, request)
        clock.run()

    # A request's way in.

    def come(self, request: Request) -> None:
        request.web.do(self.costs.web / 2, self.admit, request)

    def admit(self, request: Request) -> None:
        request.deadline = self.clock.now + self.costs.deadline
        for _ in range(min(TOGETHER, request.unsent)):
            self.send(request)

    def send(self, request: Request) -> None:
        if request.left < 0:  # one of its pictures was refused
            return
        request.unsent -= 1
        job = Job(request, request.key, request.client, request.deadline)
        job.lane = self.choose(request.web.lanes)
        job.lane.load += 1
        if request.jobs is not None:
            request.jobs.append(job)
        job.lane.loop.do(self.costs.engine / 2, self.arrive, job)

    def choose(self, lanes: list[Lane]) -> Lane:
        number = len(lanes)
        if number == 1:
            return lanes[0]
        first = int(self.random.random() * number)
        second = int(self.random.random() * (number - 1))
        one, other = lanes[first], lanes[second + (second >= first)]
        return one if one.load <= other.load else other

    def arrive(self, job: Job) -> None:
        if job.request.left < 0:  # it was given up on its way
            job.lane.load -= 1
        elif not job.lane.submit(job):
            self.fail(job, REFUSED)

    def lost(self, job: Job) -> None:
        self.fail(job, LATE)

    def fail(self, job: Job, fate: int) -> None:
        """A request fails with the first of its pictures; the others that wait are given up."""
        job.lane.load -= 1
        request = job.request
        if request.left < 0:
            return
        request.left = -1
        self.fates[request.number] = fate
        self.ended += 1
        for other in request.jobs or ():
            if other is not job and not other.gone:
                other.lane.queue.abandoned.append(other)

    # And out.

    def computed(self, jobs: list[Job]) -> None:
        jobs[0].lane.loop.do(len(jobs) * self.costs.engine / 2, self.deliver, jobs)

    def deliver(self, jobs: list[Job]) -> None:
        for job in jobs:
            job.lane.load -= 1
            self.pictures += 1
            request = job.request
            if request.left < 0:
                continue
            request.left -= 1
            if request.unsent:
                self.send(request)
            if not request.left:
                request.web.do(self.costs.web / 2, self.leave, request)

    def leave(self, request: Request) -> None:
        self.client.do(self.costs.client / 2, self.answered, request)

    def answered(self, request: Request) -> None:
        self.ended += 1
        self.latencies[request.number] = self.clock.now - self.trace.seconds[request.number] + self.costs.latency


def simulate(trace: Trace, costs: Costs, gpus: int, seed: int = 0) -> Result:
    """``costs`` names all models of the trace."""
    world = World(trace, costs, gpus, seed)
    world.run()
    assert world.ended == len(trace), "every request is answered or refused"
    span = max(world.clock.now, trace.span)
    webs = [web.work for host in world.hosts for web in host.webs]
    return Result(
        gpus=gpus,
        span=span,
        latencies=world.latencies[~np.isnan(world.latencies)],
        refused=int((world.fates == REFUSED).sum()),
        late=int((world.fates == LATE).sum()),
        pictures=world.pictures,
        batches=sum((lane.batches for lane in world.lanes), Counter()),
        device=share([lane.work for lane in world.lanes], span) / costs.threads,
        encoder=share([lane.encoded_for for lane in world.lanes], span) / costs.encoders,
        worker=share(webs, span),
        cores=sum(host.cores.work for host in world.hosts) / span if span else 0.0,
    )


class Closed(World):
    """So many clients that ask again as soon as they are answered, until ``seconds`` have passed."""

    def __init__(self, costs: Costs, model: str, clients: int, seconds: float) -> None:
        super().__init__(Trace.of(np.zeros(clients), model), costs, 1, 0)
        self.seconds = seconds

    def answered(self, request: Request) -> None:
        super().answered(request)
        if self.clock.now < self.seconds:
            self.client.do(self.costs.client / 2, self.come, Request(request.number, request.key, 1, -1, request.web))

    def rate(self) -> float:
        """Pictures a second."""
        self.run()
        return self.pictures / self.clock.now


def share(work: Sequence[float], span: float) -> float:
    return sum(work) / len(work) / span if span else 0.0


def search(trace: Trace, costs: Costs, p95: float, most: int, seed: int = 0) -> Result | None:
    """The result with the fewest devices that refuse nobody and answer 95 of 100 requests within ``p95`` seconds, ``most`` at most."""

    def enough(result: Result) -> bool:
        return not result.refused and not result.late and result.percentile(95) <= p95

    low, high = 0, 1
    while not enough(found := simulate(trace, costs, high, seed)):
        if high >= most:
            return None
        low, high = high, min(2 * high, most)
    while high - low > 1:
        middle = (low + high) // 2
        result = simulate(trace, costs, middle, seed)
        if enough(result):
            high, found = middle, result
        else:
            low = middle
    return found
