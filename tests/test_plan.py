"""The simulator of ``python -m bench plan``: against closed forms, against the lane that it copies, and what it says of bad files."""

from __future__ import annotations

import json
import math
import os
import random
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from api.engine.lane import Lane as RealLane
from api.engine.shelf import Shelf
from api.engine.turns import Ticket
from bench import plan
from bench.planning import arrivals, costs
from bench.planning.arrivals import Trace, poisson
from bench.planning.clockwork import Clock, Cores, Loop
from bench.planning.costs import Cost, Costs
from bench.planning.lanes import Job, Lane
from bench.planning.simulate import Closed, search, simulate
from tests.serving import ROOT
from tests.test_lane import Count, Counter, Ear

ENDLESS: dict[str, Any] = {"max_queue": 10**9, "deadline": 1e12}


@pytest.fixture
def seed() -> int:
    """Printed when a test fails."""
    found = random.randrange(1 << 32)
    print("seed", found)
    return found


def one(cost: Cost, **more: Any) -> Costs:
    return Costs(models={"m": cost}, **(ENDLESS | more))


def trace_of(*rows: tuple[float, str] | tuple[float, str, int]) -> Trace:
    trace = Trace.of(np.array([float(row[0]) for row in rows]), "m")
    trace.names = sorted({row[1] for row in rows})
    trace.models = np.array([trace.names.index(row[1]) for row in rows], np.int32)
    trace.counts = np.array([row[2] if len(row) > 2 else 1 for row in rows], np.int32)
    return trace


@pytest.mark.parametrize("load", [0.3, 0.6])
def test_one_by_one_it_is_m_d_1(seed: int, load: float) -> None:
    """Pollaczek and Khinchin: the mean wait of fixed service times s is ρs / 2(1 − ρ)."""
    result = simulate(poisson(load, 100_000 / load, seed, "m"), one(Cost(seconds={1: 1.0}, max_batch=1)), 1)
    assert result.latencies.mean() - 1 == pytest.approx(load / (2 * (1 - load)), rel=0.06)
    assert result.device == pytest.approx(load, rel=0.02)


def test_two_threads_are_m_d_2(seed: int) -> None:
    """Half of M/M/2's wait, by Lee and Longton's approximation with a coefficient of variation of 0; it is right within a few per cent."""
    load, threads = 0.6, 2
    a = load * threads
    erlang_c = (a**2 / 2) / ((a**2 / 2) + (1 - load) * (1 + a))
    expected = erlang_c / (threads * (1 - load)) / 2
    result = simulate(poisson(a, 70_000, seed, "m"), one(Cost(seconds={1: 1.0}, cores=1, max_batch=2), threads=threads, cores=2), 1)
    # Two that wait are taken together where they may be: here they may not, as max_batch is shared out among the threads.
    assert set(result.batches) == {1}
    assert result.latencies.mean() - 1 == pytest.approx(expected, rel=0.1)


def test_cores_are_shared_out_evenly(seed: int) -> None:
    """M/G/1 under processor sharing: the mean time of any work is s / (1 − ρ), however work is distributed."""
    clock, randoms, spent = Clock(), np.random.default_rng(seed), []
    cores, load = Cores(clock, 1), 0.5
    comings, works = np.cumsum(randoms.exponential(1 / load, 60_000)), randoms.exponential(1.0, 60_000)
    for when, work in zip(comings, works, strict=True):
        clock.run(when)
        cores.run(float(work), 1.0, lambda come: spent.append(clock.now - come), clock.now)
    clock.run()
    assert len(spent) == 60_000
    assert np.mean(spent) == pytest.approx(1 / (1 - load), rel=0.08)
    assert clock.now * load == pytest.approx(cores.work, rel=0.05)


def test_three_threads_on_two_cores() -> None:
    """Two threads have a core each; a third takes a third of both, until the first is done."""
    clock, ends = Clock(), []
    cores = Cores(clock, 2)
    for seconds in (1.0, 1.0, 2.0):
        cores.run(seconds, 1.0, lambda name: ends.append((name, round(clock.now, 9))), seconds)
    clock.run()
    assert ends == [(1.0, 1.5), (1.0, 1.5), (2.0, 2.5)]


def test_a_crowd_is_in_its_own_way() -> None:
    """Two threads of one interpreter have three quarters of their speed, and leave what they do not use to others."""
    clock, ends = Clock(), []
    cores = Cores(clock, 2, [1.0, 1.0, 0.75])
    for name, seconds, crowded in (("a", 1.5, True), ("b", 3.0, True), ("c", 2.0, False)):
        cores.run(seconds, 1.0, lambda name: ends.append((name, round(clock.now, 9))), name, crowded)
    clock.run()
    # 2.5 cores are wanted of 2 while all three are at work.
    assert sorted(ends) == [("a", 2.5), ("b", 4.0), ("c", 2.5)]


def test_a_loop_does_one_thing_after_the_other() -> None:
    clock, ends = Clock(), []
    loop = Loop(Cores(clock, 2))
    for seconds in (1.0, 2.0, 0.5):
        loop.do(seconds, lambda name: ends.append((name, clock.now)), seconds)
    clock.run()
    assert ends == [(1.0, 1.0), (2.0, 3.0), (0.5, 3.5)]


def test_a_saturated_queue_makes_full_batches() -> None:
    """The first finds nobody else; the others wait for it and go sixteen by sixteen."""
    trace = trace_of(*[(0.0, "m")] * (1 + 16 * 50))
    result = simulate(trace, one(Cost(seconds={1: 1.0, 16: 4.0})), 1)
    assert result.batches == {1: 1, 16: 50}
    assert result.span == pytest.approx(1 + 50 * 4)
    assert result.percentile(50) == pytest.approx(1 + 25 * 4)
    assert result.device == pytest.approx(1.0)


def test_cores_of_a_cpu_share_out_what_waits() -> None:
    """Each computes batches of its own, of half of max_batch at most."""
    trace = trace_of(*[(0.0, "m")] * (2 + 8 * 50))
    result = simulate(trace, one(Cost(seconds={1: 1.0, 8: 4.0}, cores=1), threads=2, cores=2), 1)
    assert result.batches == {1: 2, 8: 50}
    assert result.span == pytest.approx(1 + 25 * 4)


def test_a_lone_picture_has_a_team_until_two_are_wanted_at_once() -> None:
    """At 0, 2 and 4 s each is alone and takes half a second; at 6 s two come, and those at 8 and 9.5 s are too near to that."""
    trace = trace_of(*[(second, "m") for second in (0.0, 2.0, 4.0, 6.0, 6.25, 8.0, 9.5, 12.0)])
    cost = Cost(seconds={1: 1.0, 2: 1.5}, cores=1, team=2, alone=0.5, calm=3.5)
    result = simulate(trace, one(cost, threads=2, cores=2), 1)
    # The second of the two waits for the first one's team.
    assert result.latencies.tolist() == pytest.approx([0.5, 0.5, 0.5, 0.5, 1.25, 1.0, 1.0, 0.5])
    always = simulate(trace, one(cost.model_copy(update={"calm": 0.0}), threads=2, cores=2), 1)
    assert always.latencies.tolist() == pytest.approx([0.5, 0.5, 0.5, 0.5, 0.75, 0.5, 0.5, 0.5])


def test_batches_beside_others_scatter() -> None:
    """Half of them take half as long again: two cores make a fifth fewer pictures."""
    trace = trace_of(*[(0.0, "m")] * 4000)
    cost = Cost(seconds={1: 1.0}, max_batch=2, cores=1)
    even, uneven = (simulate(trace, one(cost, threads=2, cores=2, scatter=scatter), 1).span for scatter in ((), (1.0, 1.5)))
    assert even == pytest.approx(2000)
    assert uneven == pytest.approx(2500, rel=0.02)
    assert simulate(trace, one(cost, cores=2, scatter=(1.5,)), 1).span == pytest.approx(4000)  # one thread, beside nobody


def test_encoders_hold_the_device_up() -> None:
    """It is two encoders that a second's pictures take two seconds of; the device has to wait until eight parcels become seven."""
    trace = trace_of(*[(0.0, "m")] * 800)
    result = simulate(trace, one(Cost(seconds={1: 0.01}, encode=0.04, max_batch=1), encoders=2), 1)
    assert result.rate == pytest.approx(50, rel=0.01)
    assert result.encoder == pytest.approx(1.0, rel=0.01)
    assert result.device == pytest.approx(0.5, rel=0.01)


def test_a_core_encodes_the_small_pictures_that_it_made() -> None:
    """And goes on when that is done; a GPU goes on at once."""
    trace = trace_of(*[(0.0, "m")] * 800)
    cost = Cost(seconds={1: 0.002, 2: 0.004}, encode=0.0005, max_batch=2, cores=1)
    assert simulate(trace, one(cost, cores=2), 1).rate == pytest.approx(400, rel=0.01)
    assert simulate(trace, one(cost.model_copy(update={"cores": 0}), cores=2), 1).rate == pytest.approx(500, rel=0.01)


def test_a_web_worker_bounds_the_rate() -> None:
    trace = trace_of(*[(0.0, "m")] * 1000)
    cost = Cost(seconds={1: 0.001}, max_batch=1)
    assert simulate(trace, one(cost, web=0.01), 1).rate == pytest.approx(100, rel=0.01)
    assert simulate(trace, one(cost, web=0.01, workers=4), 1).rate == pytest.approx(400, rel=0.01)


def test_a_short_job_waits_for_one_step_of_a_long_one() -> None:
    both = {"long": Cost(seconds={1: 10.0}, steps=10), "short": Cost(seconds={1: 0.25})}
    result = simulate(trace_of((0.0, "long"), (3.5, "short"), (3.75, "short"), (4.125, "short")), Costs(models=both, **ENDLESS), 1)
    # The first two share a batch, the third waits for the next step although it comes in the pause.
    step = 0.25 * 2
    assert result.latencies == pytest.approx([10 + step + 0.25, 0.5 + step, 0.25 + step, 0.375 + 1 + 0.25])


def test_a_long_one_waits_for_company() -> None:
    """Who asks again soon after a long batch is waited for, a twentieth of its time."""
    cost = one(Cost(seconds={1: 1.0, 2: 1.5}, steps=1))
    assert simulate(trace_of((0.0, "m"), (0.5, "m"), (1.04, "m")), cost, 1).latencies == pytest.approx([1.0, 2.04, 1.5])
    assert simulate(trace_of((0.0, "m"), (0.5, "m"), (1.2, "m")), cost, 1).latencies == pytest.approx([1.0, 1.55, 1.9])


def test_steps_may_be_taken_together(seed: int) -> None:
    """Where there are only long jobs their steps are not looked at one by one, which must not be seen."""
    found = Costs(models={name: Cost(seconds={1: 1.0, 8: 3.0}, steps=5, max_batch=8) for name in ("m", "short")}, **ENDLESS)
    trace = poisson(15.0, 100, seed, "m")
    trace.steps = np.random.default_rng(seed).integers(1, 4, len(trace)).astype(np.int32)
    at_once = simulate(trace, found, 2, seed)
    trace.names = ["m", "short"]
    mixed = found.model_copy(update={"models": found.models | {"short": Cost(seconds={1: 1.0})}})
    one_by_one = simulate(trace, mixed, 2, seed)
    assert max(at_once.batches) == 8
    assert at_once.latencies == pytest.approx(one_by_one.latencies)


def test_clients_take_turns() -> None:
    """One with a hundred waiting requests does not hold up one with a single request."""
    trace = trace_of(*[(0.0, "m")] * 101)
    trace.clients = np.array([0] * 100 + [1], np.int32)
    result = simulate(trace, one(Cost(seconds={1: 1.0}, max_batch=1)), 1)
    assert result.latencies[100] == pytest.approx(2.0 + 1.0 - 1.0, abs=1.01)
    assert result.latencies[99] == pytest.approx(101.0)


def test_what_is_too_much_is_refused_and_what_is_late_given_up() -> None:
    trace = trace_of(*[(0.0, "m")] * 100)
    result = simulate(trace, Costs(models={"m": Cost(seconds={1: 1.0}, max_batch=1)}, max_queue=20, deadline=10.5), 1)
    assert (result.refused, result.answered, result.late) == (79, 11, 10)


def some(seed: int) -> tuple[Trace, Costs, int]:
    """Everything at once, more than can be served."""
    choice = random.Random(seed)
    randoms = np.random.default_rng(seed)
    trace = poisson(400, 5, seed, "short")
    count = len(trace)
    trace.names = ["short", "long"]
    trace.models = (randoms.random(count) < 0.05).astype(np.int32)
    trace.counts = np.where(randoms.random(count) < 0.1, randoms.integers(1, 80, count), 1).astype(np.int32)
    trace.steps = randoms.integers(0, 5, count).astype(np.int32)
    trace.clients = randoms.integers(-1, 5, count).astype(np.int32)
    threads = choice.choice([1, 1, 2, 4])
    models = {
        "short": Cost(
            seconds={1: 0.002, 8: 0.01},
            encode=choice.choice([0, 0.001]),
            max_batch=choice.choice([1, 8, 16]),
            cores=threads > 1,
            team=2 if threads > 1 else 1,
            alone=0.0015,
        ),
        "long": Cost(seconds={1: 0.1, 8: 0.3}, steps=choice.choice([1, 4]), max_batch=8, cores=threads if threads > 1 else 0),
    }
    found = Costs(
        models=models,
        threads=threads,
        together=choice.choice([1.0, 1.5]),
        scatter=choice.choice([(), (0.9, 1.0, 1.4)]),
        cores=choice.choice([0, 2, 4]),
        devices=choice.choice([1, 2]),
        local=choice.choice([False, True]),
        workers=choice.choice([1, 3]),
        max_queue=choice.choice([5, 100]),
        deadline=choice.choice([0.2, 60]),
        client=choice.choice([0, 0.0005]),
        web=choice.choice([0, 0.001]),
        engine=choice.choice([0, 0.0002]),
        latency=0.001,
    )
    return trace, found, choice.choice([1, 2, 5])


def test_what_is_given_up_on_its_way_leaves_the_queue_as_it_was() -> None:
    seed = 3749977310  # with which a picture was refused while others of its request were on their way, to lanes that were full
    simulate(*some(seed), seed)


@pytest.mark.parametrize("turn", range(15))
def test_every_request_ends_once_and_always_the_same(seed: int, turn: int) -> None:
    trace, found, gpus = some(seed)
    result = simulate(trace, found, gpus, seed)
    assert result.answered + result.refused + result.late == len(trace)
    pictures = sum(size * count for size, count in result.batches.items())
    assert pictures >= result.pictures >= result.answered
    assert result.latencies.min() >= 0.002
    assert max(result.batches) <= 16
    for share in (result.device, result.encoder, result.worker):
        assert 0 <= share < 1.0001
    same = simulate(trace, found, gpus, seed)
    assert same.latencies.tolist() == result.latencies.tolist()
    assert (same.batches, same.refused, same.late, same.span) == (result.batches, result.refused, result.late, result.span)


@pytest.mark.parametrize("cores", [1, 2, 5])
def test_batches_are_the_lane_s(seed: int, cores: int) -> None:
    """The same tickets, taken at the same moments, make the same batches here and there."""
    choice = random.Random(seed)
    models = {"a": Counter("a"), "b": Counter("b"), "slow": Counter("slow", long=True)}
    names = list(models)
    real = RealLane(Shelf.holding(models), Ear(), max_batch={"a": 4, "b": 16, "slow": 3}.__getitem__, max_queue=60, cores=cores)
    table = {name: Cost(seconds={1: 1.0}, max_batch=real.max_batch(name), steps=int(name == "slow")) for name in names}
    lane = Lane(
        Clock(), Cores(Clock(), 0), Costs(models=table, threads=cores, max_queue=60), names, lambda jobs: None, lambda job: None, choice
    )
    lane.at_work = cores  # begins nothing by itself
    for number in range(3000):
        if choice.random() < 0.75 or not real.queue.waiting:
            model, client = choice.randrange(len(names)), choice.randrange(-1, 4)
            name = names[model]
            ticket = Ticket(Count(model=name, seed=number), str(client) if client >= 0 else f"own {number}", math.inf)
            room = len(real.queue.waiting) < 60
            if room:
                real.submit(ticket)
            assert lane.submit(Job(number, (model, int(name == "slow")), client, math.inf)) == room
        else:
            real.at_work = lane.at_work = choice.randrange(cores)
            key = lane.queue.head()
            assert key is not None
            chosen = [] if key[1] and lane.at_work else lane.queue.take(key, lane.room(key, lane.queue.sizes[key]))
            assert [job.request for job in chosen] == [ticket.job.seed for ticket in real.choose()]
            lane.at_work = cores
        assert lane.queue.size == len(real.queue.waiting)


def test_clients_that_come_again_wait_for_each_other() -> None:
    """Thirty-two of them and batches of sixteen: half is computed while the other half comes back."""
    assert Closed(one(Cost(seconds={1: 0.5, 16: 2.0})), "m", 32, 400.0).rate() == pytest.approx(8.0, rel=0.03)
    one_by_one = Cost(seconds={1: 0.5}, max_batch=1)
    assert Closed(one(one_by_one, web=0.25), "m", 1, 400.0).rate() == pytest.approx(1 / 0.75, rel=0.01)


def test_two_choices_spread_the_load(seed: int) -> None:
    result = simulate(poisson(80, 100, seed, "m"), one(Cost(seconds={1: 0.1}, max_batch=1)), 10)
    assert result.device == pytest.approx(0.8, rel=0.05)
    assert result.percentile(95) < 0.6  # at random it would be 1.2


def test_hosts_without_ray_keep_to_their_own_device(seed: int) -> None:
    """Web workers get requests in turn: of four hosts with one device each, every one serves D/D/1 of what comes at fixed moments."""
    trace = trace_of(*[(0.25 * number, "m") for number in range(400)])
    result = simulate(trace, one(Cost(seconds={1: 1.0}, max_batch=1), local=True), 4, seed)
    assert result.latencies == pytest.approx(np.ones(400))


def test_the_fewest_devices_are_found(seed: int) -> None:
    trace, cost = poisson(50, 40, seed, "m"), one(Cost(seconds={1: 0.1}, max_batch=1))
    found = search(trace, cost, 0.15, 100)
    assert found is not None
    assert found.percentile(95) <= 0.15 < simulate(trace, cost, found.gpus - 1).percentile(95)
    assert search(trace, cost, 0.15, 5) is None
    assert search(trace, cost, 0.05, 8) is None


def test_a_day_has_a_peak(seed: int) -> None:
    trace = poisson(1.0, arrivals.DAY, seed, "m", 2.5)
    hours, _ = np.histogram(trace.seconds, 24, (0, arrivals.DAY))
    assert len(trace) == pytest.approx(arrivals.DAY, rel=0.02)
    assert hours.max() / hours.mean() == pytest.approx(2.5, rel=0.1)
    assert hours.argmax() in range(10, 14)


def test_a_trace_is_what_was_written(tmp_path: Path, seed: int) -> None:
    trace, *_ = some(seed)
    trace.callers = [f"client-{number}" for number in range(5)]
    arrivals.write(tmp_path / "trace", trace)
    again = arrivals.read(tmp_path / "trace")
    assert again.seconds == pytest.approx(trace.seconds, abs=1e-6)
    assert [again.names[number] for number in again.models] == [trace.names[number] for number in trace.models]
    assert (again.counts.tolist(), again.steps.tolist()) == (trace.counts.tolist(), trace.steps.tolist())
    told = [again.callers[number] if number >= 0 else "" for number in again.clients]
    assert told == [trace.callers[number] if number >= 0 else "" for number in trace.clients]


def test_a_trace_in_another_hand(tmp_path: Path) -> None:
    (tmp_path / "trace.csv").write_text("second,model,count\n# by hand\n2.5, faces, 3\n\n1,glyphs  # early\n0.5 faces 1 0 me\n")
    trace = arrivals.read(tmp_path / "trace.csv")
    assert trace.seconds.tolist() == [0.5, 1.0, 2.5]
    assert [trace.names[number] for number in trace.models] == ["faces", "glyphs", "faces"]
    assert trace.counts.tolist() == [1, 1, 3]
    assert trace.clients.tolist() == [0, -1, -1]


def test_sizes_between_are_interpolated() -> None:
    cost = Cost(seconds={1: 1.0, 4: 2.5, 8: 3.5}, max_batch=10)
    assert cost.table == pytest.approx([0, 1.0, 1.5, 2.0, 2.5, 2.75, 3.0, 3.25, 3.5, 3.75, 4.0])


@pytest.fixture
def costs_file(tmp_path: Path) -> Path:
    path = tmp_path / "costs.toml"
    path.write_text("web = 0.001\n[models.m]\nseconds = { 1 = 0.01, 16 = 0.04 }\n")
    return path


BAD: dict[str, tuple[str | bytes, str]] = {
    "one field": ("1.5", "1: 1 fields"),
    "a word for a second": ("second,model\n1,m\nsoon,m", "3: second: 'soon'"),
    "before the beginning": ("-1 m", "1: second: '-1'"),
    "never": ("nan m", "1: second: 'nan'"),
    "no picture": ("1 m 0", "1: count: '0'"),
    "half a picture": ("1 m 0.5", "1: count: '0.5'"),
    "too many fields": ("1 m 1 1 me you", "1: 6 fields"),
    "nothing": ("# nothing\n", "no requests"),
    "another model": ("1 other", "'other'"),
    "no text": (b"\xff\xfe\x00", "is not text"),
}


Complaint = Callable[..., str]


@pytest.fixture
def complaint(capsys: pytest.CaptureFixture[str]) -> Complaint:
    """The one line that is told of bad arguments."""

    def run(*arguments: str | Path) -> str:
        assert plan.main(list(map(str, arguments))) == 2
        told = capsys.readouterr().err
        assert told.count("\n") == 1
        return told

    return run


@pytest.mark.parametrize("name", BAD)
def test_a_bad_trace_is_told_in_a_line(name: str, tmp_path: Path, costs_file: Path, complaint: Complaint) -> None:
    content, told = BAD[name]
    path = tmp_path / "trace"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert told in complaint(path, "--costs", costs_file)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("seconds", "costs.toml: "),
        ("[models.m]\nseconds = { 2 = 1.0 }", "a batch of 1"),
        ("[models.m]\nseconds = { 1 = 0 }", "models.m.seconds.1"),
        ("[models.m]\nseconds = { 1 = 1.0 }\nteam = 2", "(alone)"),
        ("gpus = 3\n[models.m]\nseconds = { 1 = 1.0 }", "gpus"),
    ],
)
def test_bad_costs_are_told_in_a_line(content: str, told: str, costs_file: Path, complaint: Complaint) -> None:
    costs_file.write_text(content)
    assert told in complaint("--poisson", "10", "--seconds", "1", "--model", "m", "--costs", costs_file)


@pytest.mark.parametrize("arguments", [["nowhere"], ["nowhere", "--costs", "nowhere"], ["--poisson", "1", "--seconds", "1"]])
def test_what_is_missing_is_told(arguments: list[str], complaint: Complaint) -> None:
    assert complaint(*arguments)


def test_the_command(costs_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As it is typed; the seed that it tells makes the same trace again."""
    arguments = ["--poisson", "100", "--seconds", "20", "--costs", str(costs_file), "--save", str(tmp_path / "trace")]
    done = subprocess.run([sys.executable, "-m", "bench", "plan", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    seed = done.stdout.splitlines()[0].removeprefix("seed ")
    assert plan.main([*arguments, "--seed", seed]) == 0
    assert capsys.readouterr().out == done.stdout
    assert plan.main([str(tmp_path / "trace"), "--costs", str(costs_file), "--p95", "0.02"]) == 0
    found = re.search(r"p95 ([\d.]+) ms", capsys.readouterr().out)
    assert found
    assert float(found[1]) <= 20


def test_a_model_is_what_was_written(tmp_path: Path) -> None:
    found = one(Cost(seconds={1: 0.5, 4: 1.0}, steps=3, encode=0.1), note="by hand", cores=4)
    costs.write(tmp_path / "costs.json", found)
    assert json.loads((tmp_path / "costs.json").read_text())["models"]["m"]["seconds"] == {"1": 0.5, "4": 1.0}
    assert costs.read(tmp_path / "costs.json") == found


@pytest.mark.skipif(not os.environ.get("LONG"), reason="measures for a minute: LONG=1 runs it")
def test_a_real_run_is_simulated(capfd: pytest.CaptureFixture[str]) -> None:
    """Whether the two agree is for a quiet machine to tell; here they only have to be of the same kind."""
    plan.main(["--check", "--seconds", "5", "--seed", "1"])
    rows = [line.split("|") for line in capfd.readouterr().out.splitlines() if line.startswith("| p")]
    assert [row[1].strip() for row in rows] == ["p50 ms", "p95 ms", "p99 ms", "pictures in a batch", "pictures/s of 32 clients"]
    assert all(0.05 < float(row[4]) < 20 for row in rows)
