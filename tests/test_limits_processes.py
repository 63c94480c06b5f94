"""Limits over eight processes that are killed at random moments. What is at work is seen by kernel locks, not by the limits' own books."""

from __future__ import annotations

import asyncio
import fcntl
import multiprocessing
import os
import random
import signal
import sqlite3
import time
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from api.conf import BlockConf, ConcurrencyConf, LimitConf, RateConf
from api.errors import Blocked, Busy, RateLimited
from api.limits import Limits
from api.limits.base import State
from api.limits.clock import boot_time
from api.limits.local import FILE, FOLDER
from tests import redises

PROCESSES = 8
CLIENTS = 14
MOST = 3
LINE = 6
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.test_limits_processes"])

STORM = LimitConf(
    block=BlockConf(enabled=True, timeout=0.05, poll=0.02),
    concurrency=ConcurrencyConf(enabled=True, max_concurrency=MOST, max_queue=LINE, timeout=0.2, poll=0.05),
    rate=RateConf(enabled=True, max_request=1_000_000),
)

# Writes down what happens to the queue, inside the transactions in which it happens.
WITNESS = f"""
CREATE TABLE event (n INTEGER PRIMARY KEY AUTOINCREMENT, what INTEGER, who TEXT, client TEXT);
CREATE TRIGGER came AFTER INSERT ON ticket BEGIN
    INSERT INTO event (what, who, client) VALUES (new.state, new.holder || new.token, new.client); END;
CREATE TRIGGER moved AFTER UPDATE OF state ON ticket BEGIN
    INSERT INTO event (what, who, client) VALUES (new.state, new.holder || new.token, new.client); END;
CREATE TRIGGER went AFTER DELETE ON ticket BEGIN
    INSERT INTO event (what, who, client) VALUES ({State.LOST:d}, old.holder || old.token, old.client); END;
"""


class Places:
    """Files to lock while at work: the kernel frees them when a process dies, as it frees what the limits hold."""

    def __init__(self, folder: Path, prefix: str, count: int) -> None:
        self.files = [os.open(folder / f"{prefix}{i}", os.O_RDWR | os.O_CREAT, 0o600) for i in range(count)]
        self.held: set[int] = set()

    def take(self, *which: int) -> int | None:
        for i in which:
            if i not in self.held:
                with suppress(BlockingIOError):
                    fcntl.flock(self.files[i], fcntl.LOCK_EX | fcntl.LOCK_NB)
                    self.held.add(i)
                    return i
        return None

    def free(self, i: int) -> None:
        fcntl.flock(self.files[i], fcntl.LOCK_UN)
        self.held.discard(i)


class Worker:
    """What one process of the storm does."""

    def __init__(self, folder: Path, seed: int) -> None:
        # Before the limits, so that at a kill the kernel, which closes files in order, frees these first.
        self.rooms, self.badges = Places(folder, "room", MOST), Places(folder, "badge", CLIENTS)
        self.out = os.open(folder / "out", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self.folder, self.random = folder, random.Random(seed)

    def tell(self, line: str) -> None:
        os.write(self.out, (line + "\n").encode())

    async def run(self) -> None:
        self.limits = await open_limits(STORM, self.folder)
        async with asyncio.TaskGroup() as group:
            for _ in range(4):
                group.create_task(self.come_again())
        await self.limits.close()

    async def come_again(self) -> None:
        while not (self.folder / "stop").exists():
            with suppress(TimeoutError):
                async with asyncio.timeout(self.random.choice([0.001, 0.01, 0.1, 9.0])):
                    await self.come(self.random.randrange(CLIENTS))
            await asyncio.sleep(self.random.uniform(0, 0.01))

    async def come(self, client: int) -> None:
        try:
            async with self.limits.admit(str(client)) as admission:
                if self.random.random() < 0.2:
                    await admission.refund()
                with self.at_work(client):
                    await asyncio.sleep(self.random.uniform(0, 0.02))
        except (Busy, Blocked) as error:
            self.tell(type(error).__name__)

    @contextmanager
    def at_work(self, client: int) -> Iterator[None]:
        room = self.rooms.take(*list(range(MOST)) * 2)  # twice: one may be left for another while we look
        badge = self.badges.take(client)
        self.tell("done" if room is not None and badge is not None else f"violation {room} {badge}")
        try:
            yield
        finally:
            for places, i in ((self.rooms, room), (self.badges, badge)):
                if i is not None:
                    places.free(i)


def storm(folder: Path, seed: int) -> None:
    asyncio.run(Worker(folder, seed).run())


def start(target: object, *args: object) -> BaseProcess:
    process = CONTEXT.Process(target=target, args=args, daemon=True)  # type: ignore[arg-type]
    process.start()
    return process


def kill(process: BaseProcess) -> None:
    assert process.pid
    os.kill(process.pid, signal.SIGKILL)
    process.join()


async def open_limits(conf: LimitConf, folder: Path) -> Limits:
    """On the Redis that a file in ``folder`` names, if there is one."""
    file = folder / "redis"
    return await Limits.open(conf, folder, file.read_text() if file.exists() else None)


def prepare(folder: Path, conf: LimitConf, sql: str = "") -> None:
    async def open_close() -> None:
        await (await Limits.open(conf, folder)).close()

    asyncio.run(open_close())
    with sqlite3.connect(folder / FOLDER / FILE) as db:
        db.executescript(sql)
    db.close()


def check_witness(folder: Path) -> Counter[int]:
    """Replays the events: first come first served, never more than allowed, one per client."""
    with sqlite3.connect(folder / FOLDER / FILE) as db:
        events = db.execute("SELECT what, who, client FROM event ORDER BY n").fetchall()
    db.close()
    working, queue, blocked = dict[str, str](), deque[str](), dict[str, list[str]]()
    clients: Counter[str] = Counter()
    for what, who, client in events:
        was_blocked = who in blocked.get(client, [])
        was_queued = who in queue
        if what == State.BLOCKED:
            assert clients[client]
            blocked.setdefault(client, []).append(who)
        elif what == State.LOST:
            if was_blocked:
                blocked[client].remove(who)
            else:
                clients[client] -= 1
                queue.remove(who) if was_queued else working.pop(who)
        else:
            if was_blocked:
                assert blocked[client].pop(0) == who, "a client's requests overtook each other"
            if was_queued:
                assert queue.popleft() == who, "one in the queue was overtaken"
            else:
                clients[client] += 1
                assert clients[client] == 1
            if what == State.WORKING:
                assert not queue or was_queued, "somebody passed the queue"
                working[who] = client
            else:
                queue.append(who)
        assert len(working) <= MOST
        assert len(queue) <= LINE
    return Counter(what for what, _, _ in events)


@pytest.mark.parametrize("kind", ["local", "redis"])
def test_storm(tmp_path: Path, kind: str) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    if kind == "redis":
        (tmp_path / "redis").write_text(redises.shared().new_url())
    else:
        prepare(tmp_path, STORM, WITNESS)
    # Redis gives a dead process's places to others after a second, so that deaths as frequent as these would stop everything.
    pause, enough = ((0.02, 0.4), 25) if kind == "local" else ((0.8, 1.6), 8)
    workers = [start(storm, tmp_path, chance.getrandbits(32)) for _ in range(PROCESSES)]
    killed = 0
    end = time.monotonic() + 90.0
    while killed < enough or (not seen_enough(tmp_path) and time.monotonic() < end):
        time.sleep(chance.uniform(*pause))
        i = chance.randrange(PROCESSES)
        kill(workers[i])
        workers[i] = start(storm, tmp_path, chance.getrandbits(32))
        killed += 1
    kill(workers[0])  # one more that nobody replaces
    (tmp_path / "stop").touch()
    for worker in workers[1:]:
        worker.join(60)
        assert worker.exitcode == 0
    print(f"killed {killed}: {told(tmp_path)}")
    assert not [line for line in told(tmp_path) if line.startswith("violation")]
    assert seen_enough(tmp_path)
    if kind == "local":
        events = check_witness(tmp_path)
        assert events[State.QUEUED] > 0
        assert events[State.BLOCKED] > 0
    asyncio.run(all_places_are_free(tmp_path))


def told(folder: Path) -> Counter[str]:
    file = folder / "out"
    return Counter(file.read_text().splitlines() if file.exists() else [])


def seen_enough(folder: Path) -> bool:
    """Whether everything that can become of a request has happened: how soon depends on the machine, so the storm lasts until then."""
    lines = told(folder)
    return lines["done"] > 200 and min(lines["Busy"], lines["Blocked"]) > 0


async def all_places_are_free(folder: Path) -> None:
    conf = LimitConf(concurrency=STORM.concurrency.model_copy(update={"timeout": 30.0}))
    limits = await Limits.open(conf, folder)
    async with asyncio.timeout(20), limits.admit(None), limits.admit(None), limits.admit(None) as last:
        assert last.place is not None
        assert last.place.working == MOST
    await limits.close()


def stay(folder: Path, conf: LimitConf, client: str) -> None:
    """Holds a place, or waits for one, until it is killed."""

    async def act() -> None:
        limits = await Limits.open(conf, folder)
        async with limits.admit(client):
            (folder / f"working-{os.getpid()}").touch()
            await asyncio.sleep(60)

    asyncio.run(act())


def states(folder: Path) -> Counter[int]:
    with sqlite3.connect(folder / FOLDER / FILE) as db:
        found = Counter(state for (state,) in db.execute("SELECT state FROM ticket"))
    db.close()
    return found


def wait_until(folder: Path, expected: dict[State, int]) -> None:
    end = time.monotonic() + 60
    while states(folder) != expected:
        assert time.monotonic() < end, states(folder)
        time.sleep(0.01)


@pytest.mark.parametrize("which", ["queue", "block"])
def test_a_killed_holders_place_is_free_within_a_second(tmp_path: Path, which: str) -> None:
    conf = LimitConf(
        concurrency=ConcurrencyConf(enabled=which == "queue", max_concurrency=1, poll=60.0),
        block=BlockConf(enabled=which == "block", timeout=60.0, poll=60.0),
    )
    waiting = State.QUEUED if which == "queue" else State.BLOCKED
    prepare(tmp_path, conf)
    line = []
    for i in range(4):
        line.append(start(stay, tmp_path, conf, "192.0.2.1"))
        wait_until(tmp_path, {State.WORKING: 1} | ({waiting: i} if i else {}))
    kill(line[1])  # it waited first, and would be next
    begun = time.monotonic()
    kill(line[0])
    while not (tmp_path / f"working-{line[2].pid}").exists():
        assert time.monotonic() < begun + 20
        time.sleep(0.005)
    assert not (tmp_path / f"working-{line[3].pid}").exists()
    kill(line[2])
    kill(line[3])


def hurry(folder: Path, conf: LimitConf, seed: int, seconds: float) -> None:
    """Comes as often as it is let, and writes when each admission began and ended."""

    async def act() -> None:
        limits, chance = await open_limits(conf, folder), random.Random(seed)
        out = os.open(folder / "out", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            client, begun = chance.choice("ab"), boot_time()
            with suppress(RateLimited):
                async with limits.admit(client) as admission:
                    if chance.random() < 0.3:
                        await admission.refund()
                    else:
                        os.write(out, f"{client} {begun} {boot_time()}\n".encode())
            await asyncio.sleep(chance.uniform(0, 0.02))
        await limits.close()

    asyncio.run(act())


@pytest.mark.parametrize("kind", ["local", "redis"])
def test_no_rate_is_exceeded_nor_left_unused(tmp_path: Path, kind: str) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    conf = LimitConf(rate=RateConf(enabled=True, max_request=15, window=0.8))
    if kind == "redis":
        (tmp_path / "redis").write_text(redises.shared().new_url())
    else:
        prepare(tmp_path, conf)
    workers = [start(hurry, tmp_path, conf, seed + i, 3.5) for i in range(PROCESSES)]
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    lines = [line.split() for line in (tmp_path / "out").read_text().splitlines()]
    for client in "ab":
        times = sorted((int(begun), int(ended)) for name, begun, ended in lines if name == client)
        for first, _ in times:
            inside = [t for t in times if t[0] >= first and t[1] < first + 0.8e9]
            assert len(inside) <= 15
        assert len(times) >= 15 * 4
