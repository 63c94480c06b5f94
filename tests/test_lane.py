"""The lane alone: order, batches, fairness, failures, and way for short jobs."""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import pytest
from msgspec.structs import replace

from api.engine.lane import LARGE, Lane
from api.engine.shelf import Shelf
from api.engine.turns import Queue, Ticket
from api.errors import BadInput, Busy, Cancelled, Expired, NotReady, ServerError
from api.models.base import Info, Previews, Step
from api.models.jobs import Job, Output


class Count(Job, frozen=True, kw_only=True):
    """What the models of this file are asked for; ``kind`` tells batches apart."""

    kind: str = "a"
    trouble: str = ""
    steps: int = 0


class Study(Count, frozen=True, kw_only=True):
    """A job that is long although its model is not."""

    long: ClassVar[bool] = True


class Counter:
    """A model whose picture is the seed, and which remembers its batches."""

    def __init__(self, name: str = "counter", *, long: bool = False) -> None:
        self.info = Info(
            id=name,
            name=name,
            description="",
            family="",
            width=1,
            height=1,
            lossy=False,
            device="cpu",
            digest="",
            kinds=("Count",),
            long=long,
        )
        self.batches: list[list[int]] = []
        self.before: Callable[[Sequence[Job]], None] = lambda jobs: None

    def prepare(self, job: Job) -> Job:
        assert isinstance(job, Count)
        if job.trouble == "refused":
            raise BadInput("refused")
        return job

    def key(self, job: Job) -> Hashable:
        assert isinstance(job, Count)
        return job.kind

    def run(self, jobs: Sequence[Job], step: Step) -> Sequence[Output]:
        self.batches.append([job.seed or 0 for job in jobs])
        self.before(jobs)
        for job in jobs:
            assert isinstance(job, Count)
            if job.trouble == "breaks":
                raise ValueError("a bad job")
            if job.trouble == "greedy" and len(jobs) > 2:
                raise MemoryError("not enough memory")
        for index in range(max((job.steps for job in jobs if isinstance(job, Count)), default=0)):
            step(index, 10)
            time.sleep(0.005)
        return [Output(image=np.full((1, 1, 3), (job.seed or 0) % 256, np.uint8), seed=job.seed or 0) for job in jobs]


@dataclass
class Ear:
    """A listener that keeps what it hears."""

    results: dict[int, Output | ServerError] = field(default_factory=dict)
    order: list[int] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    heard: threading.Condition = field(default_factory=threading.Condition)

    def started(self, batch: Sequence[Ticket]) -> None:
        pass

    def progressed(self, ticket: Ticket, index: int, total: int, previews: Previews | None) -> None:
        self.steps.append(index)

    def finished(self, batch: Sequence[Ticket], outputs: Sequence[Output], seconds: float) -> None:
        for ticket, output in zip(batch, outputs, strict=True):
            self.note(ticket, output)

    def failed(self, ticket: Ticket, error: ServerError) -> None:
        self.note(ticket, error)

    def note(self, ticket: Ticket, result: Output | ServerError) -> None:
        with self.heard:
            seed = ticket.job.seed or 0
            assert seed not in self.results, "a ticket ended twice"
            self.results[seed] = result
            self.order.append(seed)
            self.heard.notify_all()

    def wait(self, count: int) -> None:
        with self.heard:
            assert self.heard.wait_for(lambda: len(self.results) >= count, 10), self.results


class Setup:
    def __init__(self) -> None:
        self.model, self.slow, self.ear = Counter(), Counter("slow", long=True), Ear()
        shelf = Shelf.holding({"counter": self.model, "slow": self.slow})
        self.lane = Lane(shelf, self.ear, max_batch=lambda model_id: 4, max_queue=100)
        self.thread = threading.Thread(target=self.lane.run, daemon=True)

    def ticket(
        self, seed: int, client: str = "one", *, wait: float = 60.0, progress: bool = False, alone: bool = False, **job: object
    ) -> Ticket:
        model = str(job.pop("model", "counter"))
        return Ticket(Count(model=model, seed=seed, **job), client, time.monotonic() + wait, alone, progress)  # type: ignore[arg-type]

    def submit(self, *args: object, **more: object) -> Ticket:
        ticket = self.ticket(*args, **more)  # type: ignore[arg-type]
        self.lane.submit(ticket)
        return ticket


@pytest.fixture
def setup() -> Iterator[Setup]:
    setup = Setup()
    yield setup
    setup.lane.close()
    if setup.thread.is_alive():
        setup.thread.join(10)
        assert not setup.thread.is_alive()


def test_waiting_jobs_of_a_key_share_a_batch(setup: Setup) -> None:
    for seed in range(6):
        setup.submit(seed, kind="b" if seed == 1 else "a")
    setup.thread.start()
    setup.ear.wait(6)
    assert setup.model.batches == [[0, 2, 3, 4], [1], [5]]


def test_a_lone_job_does_not_wait_for_company(setup: Setup) -> None:
    setup.thread.start()
    begun = time.monotonic()
    setup.submit(1)
    setup.ear.wait(1)
    assert time.monotonic() - begun < 5
    assert setup.model.batches == [[1]]


def test_one_client_does_not_hold_up_another(setup: Setup) -> None:
    for seed in range(100, 120):
        setup.submit(seed, "greedy")
    setup.submit(1, "modest")
    setup.thread.start()
    setup.ear.wait(21)
    assert setup.ear.order.index(1) < 4


def test_fair_queue_interleaves_any_number_of_clients() -> None:
    queue, seen = Queue(), []
    for number in range(30):
        queue.add(Ticket(Count(model="m", seed=number), f"client {number // 10}", 0.0))
    while queue.waiting:
        head = queue.waiting[0]
        queue.take([head])
        seen.append(head.client)
    assert all(len(set(seen[start : start + 3])) == 3 for start in range(0, 30, 3))


def test_nobody_pays_turns_for_what_they_left() -> None:
    queue = Queue()

    def add(client: str) -> Ticket:
        queue.add(ticket := Ticket(Count(model="counter", seed=1), client, 1e18))
        return ticket

    left, others = [add("one") for _ in range(64)], [add("two") for _ in range(10)]
    for ticket in left:
        ticket.abandoned = True
    assert queue.sweep(0.0) == left
    first, second = add("one"), add("one")
    assert (queue.waiting.index(first), queue.waiting.index(second)) == (1, 3)
    first.abandoned = True
    queue.sweep(0.0)
    assert second.turn < add("one").turn
    assert queue.waiting[0] is others[0]
    crowd = [add("three") for _ in range(9)]
    for part in (crowd[:4], crowd[4:]):  # who leaves step by step pays no more than who leaves at once
        for ticket in part:
            ticket.abandoned = True
        assert queue.sweep(0.0) == part
    assert add("three").turn[0] == 1.0


def test_late_and_abandoned_jobs_never_run(setup: Setup) -> None:
    setup.submit(1, wait=-1.0)
    left = setup.submit(2)
    setup.submit(3)
    setup.lane.cancel(left)
    setup.thread.start()
    setup.ear.wait(3)
    assert isinstance(setup.ear.results[1], Expired)
    assert isinstance(setup.ear.results[2], Cancelled)
    assert setup.model.batches == [[3]]


def test_whom_nobody_waits_for_takes_no_place(setup: Setup) -> None:
    setup.lane.max_queue = 2
    left, late = setup.submit(1), setup.submit(2, wait=0.2)
    with pytest.raises(Busy):
        setup.submit(3)
    setup.lane.cancel(left)
    setup.submit(4)
    assert isinstance(setup.ear.results.pop(1), Cancelled)
    with pytest.raises(Busy):
        setup.submit(5)
    time.sleep(max(0.0, late.deadline - time.monotonic()))
    setup.submit(6)
    assert isinstance(setup.ear.results.pop(2), Expired)
    setup.thread.start()
    setup.ear.wait(2)
    assert setup.model.batches == [[4, 6]]


def test_a_bad_job_fails_alone(setup: Setup) -> None:
    for seed in range(4):
        setup.submit(seed, trouble="breaks" if seed == 2 else "")
    setup.thread.start()
    setup.ear.wait(4)
    kinds = {seed: type(result) for seed, result in setup.ear.results.items()}
    assert kinds == {0: Output, 1: Output, 2: ServerError, 3: Output}
    assert "bad job" not in str(setup.ear.results[2])


def test_out_of_memory_halves_the_batch_for_good(setup: Setup) -> None:
    for seed in range(8):
        setup.submit(seed, trouble="greedy")
    setup.thread.start()
    setup.ear.wait(8)
    assert [len(batch) for batch in setup.model.batches] == [4, 2, 2, 2, 2]
    assert all(isinstance(result, Output) for result in setup.ear.results.values())


def test_a_suspect_runs_alone(setup: Setup) -> None:
    setup.submit(1)
    setup.submit(2, alone=True)
    setup.submit(3)
    setup.thread.start()
    setup.ear.wait(3)
    assert sorted(setup.model.batches) == [[1, 3], [2]]


def test_short_jobs_run_between_the_steps_of_a_long_one(setup: Setup) -> None:
    setup.thread.start()
    setup.submit(1, model="slow", steps=40, progress=True)
    while not setup.ear.steps:
        time.sleep(0.001)
    setup.submit(2)
    setup.ear.wait(1)
    assert setup.ear.order == [2]
    setup.ear.wait(2)
    assert setup.ear.steps == list(range(40))


def test_a_long_job_of_a_quick_model_gives_way_to_quick_ones_alone(setup: Setup) -> None:
    for seed in (1, 2):
        job = Study(model="counter", seed=seed, steps=3, kind=f"study {seed}")
        setup.lane.submit(Ticket(job, "one", time.monotonic() + 60))
    setup.submit(3)
    setup.thread.start()
    setup.ear.wait(3)
    assert setup.ear.order == [3, 1, 2]


def test_cancelling_a_running_long_job_frees_the_device_at_its_next_step(setup: Setup) -> None:
    setup.thread.start()
    ticket = setup.submit(1, model="slow", steps=1000, progress=True)
    while not setup.ear.steps:
        time.sleep(0.001)
    setup.lane.cancel(ticket)
    setup.ear.wait(1)
    assert isinstance(setup.ear.results[1], Cancelled)
    assert len(setup.ear.steps) < 100


def test_a_full_or_closed_lane_refuses_at_once(setup: Setup) -> None:
    for seed in range(100):
        setup.submit(seed)
    with pytest.raises(Busy):
        setup.submit(100)
    setup.lane.close()
    setup.thread.start()
    setup.ear.wait(100)
    setup.thread.join(10)
    with pytest.raises(Busy):
        setup.submit(101)


def test_bad_input_and_unknown_models_are_refused_before_the_queue(setup: Setup) -> None:
    with pytest.raises(BadInput):
        setup.submit(1, trouble="refused")
    with pytest.raises(NotReady):
        setup.submit(1, model="other")
    assert not setup.lane.queue.waiting


def test_after_a_long_batch_the_lane_waits_a_moment_for_those_who_come_back(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api.engine.lane.WORTH", 1e6)  # the moment lasts as long as it takes
    for seed in range(3):
        setup.submit(seed, model="slow", steps=1)
    setup.thread.start()
    setup.ear.wait(3)
    setup.submit(3, model="slow", steps=1)
    time.sleep(0.1)
    assert setup.slow.batches == [[0, 1, 2]]
    setup.submit(4, model="slow", steps=1)
    setup.submit(5, model="slow", steps=1)
    setup.ear.wait(6)
    assert setup.slow.batches == [[0, 1, 2], [3, 4, 5]]
    setup.submit(6, model="slow", steps=1)
    setup.submit(7)  # a short job is not kept waiting
    setup.ear.wait(8)
    assert setup.model.batches == [[7]]


# Several cores.


class Cores(Setup):
    """Two threads of one lane; ``used`` notes the cores that each batch was computed with."""

    def __init__(self, parameters: int = 0) -> None:
        super().__init__()
        self.model.info = replace(self.model.info, parameters=parameters)
        self.local = threading.local()
        self.used: list[int] = []
        shelf = Shelf.holding({"counter": self.model, "slow": self.slow})
        self.lane = Lane(shelf, self.ear, max_batch=lambda model_id: 8, max_queue=100, cores=2, use=self.use)
        self.threads = [threading.Thread(target=self.lane.run, args=(first,), daemon=True) for first in (True, False)]
        self.model.before = self.slow.before = lambda jobs: self.used.append(self.local.cores)

    def use(self, cores: int) -> None:
        self.local.cores = cores

    def start(self) -> None:
        for thread in self.threads:
            thread.start()

    def settle(self) -> None:
        """Waits until nobody is at work: a picture is there a moment before its thread is free."""
        while self.lane.at_work:
            time.sleep(0.001)


@pytest.fixture
def cores() -> Iterator[Callable[..., Cores]]:
    made: list[Cores] = []

    def make(parameters: int = 0) -> Cores:
        made.append(Cores(parameters))
        return made[-1]

    yield make
    for setup in made:
        setup.lane.close()
        for thread in setup.threads:
            thread.join(10)
            assert not thread.is_alive()


def test_cores_share_out_what_waits_and_work_at_the_same_time(cores: Callable[..., Cores]) -> None:
    setup, meeting = cores(), threading.Barrier(2)

    def meet(jobs: Sequence[Job]) -> None:
        meeting.wait(10)

    setup.model.before = meet
    for seed in range(6):
        setup.submit(seed)
    setup.start()
    setup.ear.wait(6)
    assert sorted(setup.model.batches) == [[0, 1, 2], [3, 4, 5]]


def test_all_cores_together_compute_max_batch_pictures_at_most(cores: Callable[..., Cores]) -> None:
    setup = cores()
    for seed in range(40):
        setup.submit(seed)
    setup.start()
    setup.ear.wait(40)
    assert max(map(len, setup.model.batches)) == 4
    assert sorted(itertools.chain(*setup.model.batches)) == list(range(40))


def test_a_long_job_has_the_device_and_all_cores_help_with_the_short_ones_between_its_steps(cores: Callable[..., Cores]) -> None:
    setup, meeting = cores(), threading.Barrier(2)

    def meet(jobs: Sequence[Job]) -> None:
        setup.used.append(setup.local.cores)
        meeting.wait(10)

    def disturb(jobs: Sequence[Job]) -> None:
        setup.used.append(setup.local.cores)
        for seed in range(4):
            setup.submit(seed)

    setup.model.before, setup.slow.before = meet, disturb
    setup.submit(10, model="slow", steps=3, progress=True)
    setup.start()
    setup.ear.wait(5)
    assert setup.ear.order[-1] == 10
    assert setup.ear.steps == [0, 1, 2]
    assert sorted(setup.model.batches) == [[0, 1], [2, 3]]
    assert setup.used == [2, 1, 1]


def test_nothing_begins_beside_a_suspect(cores: Callable[..., Cores]) -> None:
    setup, beside = cores(), list[int]()

    def run(jobs: Sequence[Job]) -> None:
        if jobs[0].seed == 1:
            beside.append(len(setup.model.batches))
            time.sleep(0.05)
            beside.append(len(setup.model.batches))

    setup.model.before = run
    setup.submit(1, alone=True)
    for seed in range(2, 10):
        setup.submit(seed)
    setup.start()
    setup.ear.wait(9)
    assert beside == [1, 1]


def test_a_lone_picture_of_a_large_network_takes_its_team_and_several_one_core_each(cores: Callable[..., Cores]) -> None:
    single, large = cores(LARGE), cores(LARGE)
    large.lane.teams["counter"] = 2
    for setup in (single, large):
        setup.submit(1)
        setup.start()
        setup.ear.wait(1)
    assert (single.used, large.used) == ([1], [2])
    with large.lane.guard:
        for seed in range(2, 6):
            large.submit(seed)
    large.ear.wait(5)
    assert set(large.used[1:]) == {1}


def test_a_small_network_has_its_team_only_while_pictures_come_one_by_one(
    cores: Callable[..., Cores], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.engine.lane.CALM", 0.5)
    setup = cores()
    setup.lane.teams["counter"] = 2
    setup.start()
    for seed in range(20):
        with setup.lane.guard:
            setup.lane.others.notify_all()  # whoever happens to be awake: it is the first thread's
            setup.submit(seed)
        setup.ear.wait(seed + 1)
        setup.settle()
    assert setup.used == [2] * 20
    with setup.lane.guard:
        setup.submit(20)
        setup.submit(21)
    setup.ear.wait(22)
    setup.settle()
    setup.submit(22)
    setup.ear.wait(23)
    assert set(setup.used[20:]) == {1}
    time.sleep(0.5)
    setup.submit(23)
    setup.ear.wait(24)
    assert setup.used[-1] == 2


def test_no_call_for_a_thread_is_lost(cores: Callable[..., Cores]) -> None:
    """Few and many at a time, from several threads, with a network that has a team and one that is long: all end, without a wait."""
    setup, chance = cores(), random.Random(1)
    setup.lane.teams["counter"], setup.lane.max_queue = 2, 10_000
    setup.start()

    def press(first: int) -> None:
        for seed in range(first, first + 400):
            setup.submit(seed, model="slow" if seed % 50 == 0 else "counter", steps=2)
            if seed % 3 == 0:
                time.sleep(chance.random() / 1000)

    pressing = [threading.Thread(target=press, args=(1000 * n,)) for n in range(3)]
    for thread in pressing:
        thread.start()
    for thread in pressing:
        thread.join(60)
    setup.ear.wait(1200)
    for seed in range(5000, 5100):
        begun = time.monotonic()
        setup.submit(seed)
        setup.ear.wait(1201 + seed - 5000)
        assert time.monotonic() - begun < 5


def test_a_free_core_is_called_while_another_computes(cores: Callable[..., Cores]) -> None:
    setup, busy, done = cores(), threading.Event(), threading.Event()

    def hold(jobs: Sequence[Job]) -> None:
        if jobs[0].seed == 1:
            busy.set()
            assert done.wait(10)

    setup.model.before = hold
    setup.start()
    setup.submit(1)
    try:
        assert busy.wait(10)
        for seed in range(2, 5):
            time.sleep(0.05)  # until the other one sleeps
            setup.submit(seed)
            setup.ear.wait(seed - 1)
        assert 1 not in setup.ear.results
    finally:
        done.set()
    setup.ear.wait(4)


def test_an_error_in_one_cores_batch_leaves_the_others_alone(cores: Callable[..., Cores]) -> None:
    setup = cores()
    for seed in range(20):
        setup.submit(seed, trouble="breaks" if seed == 7 else "")
    setup.start()
    setup.ear.wait(20)
    assert [seed for seed, result in setup.ear.results.items() if isinstance(result, ServerError)] == [7]


def test_what_has_the_device_is_always_computed_by_the_first_thread(cores: Callable[..., Cores]) -> None:
    setup, threads = cores(), set[int]()
    setup.slow.before = lambda jobs: threads.add(threading.get_ident())
    setup.start()
    for seed in range(0, 60, 2):
        setup.submit(seed, model="slow", steps=1, wait=60.0 if seed % 4 else 0.0)  # every other one is late already
        setup.submit(seed + 1)
        setup.ear.wait(seed + 2)
    assert threads == {setup.threads[0].ident}
