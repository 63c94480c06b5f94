"""The lane of ``api/engine/lane.py`` in simulated time: which job's turn it is, who shares its batch, who is refused or given up.

The same rules, in a form that a million jobs can be put through; ``tests/test_plan.py`` compares the two.
"""

from __future__ import annotations

import functools
import random
from collections import Counter, deque
from collections.abc import Callable, Sequence
from heapq import heappop, heappush
from typing import Any

from api.engine.lane import AT_LEAST, WORTH
from bench.planning.clockwork import Clock, Cores, Loop
from bench.planning.costs import Costs

QUICK = 0.001  # seconds that a picture takes to encode, of those that `api.engine.host.is_quick`
Key = tuple[int, int]  # the model's number and its steps, which are 0 for a short one
Then = Callable[[], None]
State = tuple[list["Job"], int, float]  # a long batch, its steps so far, when it was begun


class Job:
    """A picture that is asked for."""

    __slots__ = ("arrived", "client", "deadline", "gone", "key", "lane", "request")

    def __init__(self, request: Any, key: Key, client: int, deadline: float) -> None:
        self.request, self.key, self.client, self.deadline = request, key, client, deadline
        self.arrived = 0.0
        self.gone = True  # from the queue, or not there yet
        self.lane: Lane


class Queue:
    """Waiting jobs in the order of their turns, those of each key by themselves; as ``api.engine.turns.Queue``."""

    def __init__(self) -> None:
        self.keys: dict[Key, list[tuple[float, int, Job]]] = {}
        self.sizes: Counter[Key] = Counter()
        self.last: dict[int, float] = {}
        self.oldest: deque[Job] = deque()
        self.abandoned: list[Job] = []
        self.now, self.count, self.size = 0.0, 0, 0

    def add(self, job: Job) -> None:
        turn = self.now + 1.0
        if job.client >= 0:
            turn = max(turn, self.last.get(job.client, 0.0) + 1.0)
            self.last[job.client] = turn
        job.gone = False
        self.count += 1
        self.size += 1
        self.sizes[job.key] += 1
        heappush(self.keys.setdefault(job.key, []), (turn, self.count, job))
        self.oldest.append(job)

    def head(self, short: bool = False, until: int | None = None) -> Key | None:
        """The key of the job whose turn it is; with ``short`` among the short ones, with ``until`` among the first so many that came."""
        chosen, best = None, (float("inf"), 0)
        for key in list(self.keys):
            if short and key[1]:
                continue
            heap = self.keys[key]
            while heap and heap[0][2].gone:
                heappop(heap)
            if not heap:
                del self.keys[key], self.sizes[key]
                continue
            first = heap[0] if until is None else min((e for e in heap if e[1] <= until and not e[2].gone), default=None, key=order)
            if first is not None and order(first) < best:
                chosen, best = key, order(first)
        return chosen

    def among(self, key: Key, until: int) -> int:
        """How many with a key are among the first ``until`` that came."""
        return sum(entry[1] <= until and not entry[2].gone for entry in self.keys[key])

    def take(self, key: Key, room: int, until: int | None = None) -> list[Job]:
        """The next jobs with a key."""
        heap, turn = self.keys[key], 0.0
        batch: list[Job] = []
        aside: list[tuple[float, int, Job]] = []
        while heap and len(batch) < room:
            entry = heappop(heap)
            if entry[2].gone:
                continue
            if until is not None and entry[1] > until:
                aside.append(entry)
                continue
            turn = turn or entry[0]
            entry[2].gone = True
            batch.append(entry[2])
        for entry in aside:
            heappush(heap, entry)
        self.size -= len(batch)
        self.sizes[key] -= len(batch)
        self.serve(turn)
        return batch

    def serve(self, turn: float) -> None:
        self.now = max(self.now, turn)
        if not self.size:
            self.last.clear()
            self.oldest.clear()
            self.now = 0.0
        elif len(self.last) > 2 * self.size + 64:
            self.last = {client: turn for client, turn in self.last.items() if turn > self.now}

    def sweep(self, now: float) -> list[Job]:
        """Takes out what nobody waits for any more; returns what came too late."""
        for job in self.abandoned:
            if not job.gone:
                self.drop(job)
                job.lane.load -= 1
        self.abandoned.clear()
        late = []
        while self.oldest and (self.oldest[0].gone or self.oldest[0].deadline <= now):
            job = self.oldest.popleft()
            if not job.gone:
                self.drop(job)
                late.append(job)
        return late

    def drop(self, job: Job) -> None:
        job.gone = True
        self.size -= 1
        self.sizes[job.key] -= 1

    def hurried(self) -> bool:
        """Whether a short job waits."""
        return any(count for key, count in self.sizes.items() if not key[1])


def order(entry: tuple[float, int, Job]) -> tuple[float, int]:
    return entry[:2]


class Lane:
    """A device with its queue and its encoders. ``done`` gets pictures, ``lost`` jobs that came too late.

    As ``api.engine.lane.Lane``, without failures and without models that have to be loaded first.
    """

    def __init__(
        self,
        clock: Clock,
        cores: Cores,
        costs: Costs,
        names: Sequence[str],
        done: Callable[[list[Job]], None],
        lost: Callable[[Job], None],
        chance: random.Random,
    ) -> None:
        self.clock, self.cores, self.done, self.lost = clock, cores, done, lost
        self.models = [costs.models[name] for name in names]
        self.tables = [model.table for model in self.models]
        self.alike = all(model.steps and not model.cores for model in self.models)  # long ones on GPUs, whose steps take as long as planned
        self.threads, self.encoders, self.max_queue = costs.threads, costs.encoders, costs.max_queue
        self.scatter, self.chance = costs.scatter, chance
        self.loop = Loop(cores)
        self.queue = Queue()
        self.at_work = 0  # threads
        self.whole = False  # one of them has the whole device
        self.crowded = float("-inf")  # when somebody last came and was not the only one
        self.helping = False  # that one, with the short jobs that pass it
        self.pause: int | None = None  # the last of the jobs that may pass a long one now
        self.waiting = self.waits = 0  # for company: the number of the wait, 0 if there is none
        self.company, self.end = 0, 0.0  # how many are likely to come together, until when it is worth waiting for them
        self.batches: Counter[int] = Counter()
        self.work = self.encoded_for = 0.0
        self.load = 0  # jobs on their way to it, in it, on their way back
        self.held: deque[tuple[list[list[Job]], Then]] = deque()  # parcels that find no room with the encoders
        self.parcels: deque[list[Job]] = deque()
        self.encoding = 0

    def submit(self, job: Job) -> bool:
        """Whether there was room."""
        if self.queue.size >= self.max_queue:
            return False
        job.arrived = self.clock.now
        if self.at_work or self.queue.size:
            self.crowded = self.clock.now
        self.queue.add(job)
        if self.at_work < self.threads and not self.whole:
            self.look()
        return True

    def look(self) -> None:
        """Gives the idle threads what may be begun."""
        while self.at_work < self.threads and self.queue.size and not self.whole:
            if self.clock.now < self.end and not self.complete():
                self.wait()
                return
            self.waiting = 0
            self.bury()
            key = self.queue.head()
            if key is None or (key[1] and self.at_work):  # a long one has the device to itself
                return
            batch = self.queue.take(key, self.room(key, self.queue.sizes[key]))
            self.at_work += 1
            self.batches[len(batch)] += 1
            cost = self.models[key[0]]
            if key[1]:
                self.whole = True
                self.step((batch, 0, self.clock.now))
            elif cost.team > 1 and self.at_work == len(batch) == 1 and not self.queue.size and batch[0].arrived - self.crowded >= cost.calm:
                self.whole = True
                self.spend(cost.team, cost.alone, self.computed, (batch, self.leave))
            else:
                self.compute(batch, self.leave)

    def room(self, key: Key, count: int) -> int:
        most = self.models[key[0]].max_batch
        if self.threads == 1 or key[1]:
            return most
        idle = max(1, self.threads - self.at_work + self.whole)
        return min(max(1, most // self.threads), max(AT_LEAST, -(-count // idle)))

    def complete(self) -> bool:
        return self.queue.size >= self.company or self.queue.hurried()

    def wait(self) -> None:
        if not self.waiting:
            self.waits += 1
            self.waiting = self.waits
            self.clock.at(self.end, self.enough, self.waits)

    def enough(self, wait: int) -> None:
        if wait == self.waiting:
            self.look()

    def bury(self) -> None:
        for job in self.queue.sweep(self.clock.now):
            self.lost(job)

    def compute(self, batch: list[Job], then: Then) -> None:
        """A short batch on one thread; ``then`` once it is with the encoders."""
        model = batch[0].key[0]
        seconds = self.tables[model][len(batch)]
        if self.scatter and self.at_work > 1:
            seconds *= self.chance.choice(self.scatter)
        self.spend(self.models[model].cores, seconds, self.computed, (batch, then))

    def spend(self, width: float, seconds: float, call: Callable[[Any], None], argument: Any) -> None:
        self.work += seconds * max(width, 1.0)
        if width:
            self.cores.run(seconds, width, call, argument, crowded=True)
        else:
            self.clock.at(self.clock.now + seconds, call, argument)

    def computed(self, ended: tuple[list[Job], Then]) -> None:
        self.hand_over(*ended)

    def leave(self) -> None:
        self.at_work -= 1
        if not self.at_work:
            self.whole = False
        self.look()

    # Long batches, which give way between their steps to the short jobs that have come until then.

    def step(self, state: State) -> None:
        batch, index, begun = state
        model, _ = batch[0].key
        if all(job.deadline <= self.clock.now for job in batch):
            for job in batch:
                self.lost(job)
            self.leave()
            return
        each = self.tables[model][len(batch)] / (self.models[model].steps or 1)
        rest = batch[0].key[1] - index
        if self.alike and self.clock.now + (rest - 1) * each < max(job.deadline for job in batch):
            # Nobody passes by and nobody gives up before the end.
            self.spend(self.models[model].cores, rest * each, self.stepped, (batch, index + rest, begun))
            return
        self.spend(self.models[model].cores, each, self.stepped, (batch, index + 1, begun))

    def stepped(self, state: State) -> None:
        batch, index, begun = state
        if index < batch[0].key[1]:
            self.bury()
            self.pause = self.queue.count
            self.pass_by(state)
            return
        spent = self.clock.now - begun
        self.company = min(len(batch) + self.queue.size, self.models[batch[0].key[0]].max_batch)
        self.end = self.clock.now + WORTH * spent
        self.hand_over(batch, self.leave)

    def pass_by(self, state: State) -> None:
        """Has all threads compute the short jobs, its own first, which counts as at work all the time; then goes on with the long batch."""
        assert self.pause is not None
        while self.at_work < self.threads or not self.helping:
            key = self.queue.head(short=True, until=self.pause)
            if key is None:
                break
            batch = self.queue.take(key, self.room(key, self.queue.among(key, self.pause)), self.pause)
            own, self.helping = not self.helping, True
            self.at_work += not own
            self.batches[len(batch)] += 1
            self.compute(batch, functools.partial(self.passed, state, own))
        if self.at_work == 1 and not self.helping:
            self.pause = None
            self.step(state)

    def passed(self, state: State, own: bool) -> None:
        if own:
            self.helping = False
        else:
            self.at_work -= 1
        self.pass_by(state)

    # Small pictures are encoded by the thread that made them, a GPU's only where there is one. Encoders get few parcels of a batch, as many
    # at once as there are threads, four for each at most.

    def hand_over(self, batch: list[Job], then: Then) -> None:
        model = self.models[batch[0].key[0]]
        if model.encode < QUICK and (model.cores or len(batch) == 1):
            seconds = len(batch) * model.encode
            self.encoded_for += seconds
            if seconds:
                self.cores.run(seconds, 1.0, self.kept, (batch, then))
            else:
                self.kept((batch, then))
            return
        share = max(1, -(-len(batch) // self.encoders))
        self.held.append(([batch[start : start + share] for start in range(0, len(batch), share)], then))
        self.fill()

    def kept(self, ended: tuple[list[Job], Then]) -> None:
        batch, then = ended
        self.done(batch)
        then()

    def fill(self) -> None:
        while self.held:
            parcels, then = self.held[0]
            while parcels and len(self.parcels) + self.encoding < 4 * self.encoders:
                self.parcels.append(parcels.pop(0))
                self.encode()
            if parcels:
                return
            self.held.popleft()
            then()

    def encode(self) -> None:
        while self.parcels and self.encoding < self.encoders:
            parcel = self.parcels.popleft()
            seconds = sum(self.models[job.key[0]].encode for job in parcel)
            if seconds:
                self.encoding += 1
                self.encoded_for += seconds
                self.cores.run(seconds, 1.0, self.encoded, parcel)
            else:
                self.done(parcel)

    def encoded(self, parcel: list[Job]) -> None:
        self.encoding -= 1
        self.encode()
        self.fill()
        self.done(parcel)
