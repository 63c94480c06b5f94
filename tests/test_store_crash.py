"""Processes that are killed at any moment: no task is lost, none is finished twice."""

from __future__ import annotations

import asyncio
import hashlib
import multiprocessing
import os
import random
import signal
import time
from functools import partial
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from api.errors import LeaseLost
from api.store.database import Transaction
from api.store.queue import Claim
from api.store.store import Options, Store
from api.store.tables import about
from tests.databases import KINDS, new_url

OPTIONS = Options(max_attempts=1000)
TASKS = 30


@pytest.fixture(scope="module")
def processes() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


@pytest.fixture(params=KINDS)
def url(request: pytest.FixtureRequest) -> str | None:
    return new_url(request.param)


def picture(seed: int) -> str:
    return hashlib.sha256(str(seed).encode()).hexdigest()


async def compute(store: Store, claim: Claim) -> dict[str, Any]:
    for step in range(3):
        await asyncio.sleep(0.01)
        await store.queue.report(claim, {"step": step})
    return {"value": picture(claim.task.params["seed"])}


async def list_result(task_id: str, connection: Transaction) -> None:
    await connection.execute(sa.insert(about).values(key=task_id, value=str(os.getpid())))


def work(folder: Path, url: str | None) -> None:
    """A worker that goes on until it is killed; each result is also written to a table where a second one would not fit."""

    async def run() -> None:
        async with await Store.open(folder, url, options=OPTIONS) as store:
            while True:
                claim = await store.queue.next(f"pid {os.getpid()}", 0.8)
                try:
                    result = await store.queue.hold(claim, compute(store, claim))
                    await store.queue.finish(claim, result, also=partial(list_result, claim.task.id))
                except LeaseLost:
                    continue

    asyncio.run(run())


def produce(folder: Path, url: str | None, seen: Path) -> None:
    """Makes tasks until it is killed, and tells the ids it was given."""

    async def run() -> None:
        async with await Store.open(folder, url) as store:
            with open(seen, "ab", buffering=0) as file:
                for seed in range(1_000_000):
                    task = await store.tasks.create("ann", "x", {"seed": seed})
                    file.write(task.id.encode() + b"\n")

    asyncio.run(run())


def open_once(folder: Path, url: str | None) -> None:
    async def run() -> None:
        async with await Store.open(folder, url) as store:
            await store.tasks.create("ann", "x", {"pid": os.getpid()})

    asyncio.run(run())


def kill(process: BaseProcess) -> None:
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join(10)
    process.close()


def test_killed_workers_lose_nothing(processes: ForkServerContext, url: str | None, tmp_path: Path) -> None:
    seed = random.randrange(2**32)
    print("seed", seed)
    draw = random.Random(seed)

    async def state(store: Store) -> int:
        found = [task for owner in "abc" for task in await store.tasks.of_owner(owner, limit=TASKS)]
        return sum(task.state == "finished" for task in found)

    async def run() -> int:
        kills, limit = 0, time.monotonic() + 50
        async with await Store.open(tmp_path, url, options=OPTIONS) as store:
            made = [(await store.tasks.create("abc"[n % 3], "x", {"seed": n})).id for n in range(TASKS)]
            workers = [spawn() for _ in range(3)]
            try:
                while (done := await state(store)) < TASKS and time.monotonic() < limit:
                    begun = time.monotonic()  # on a busy machine a worker must live long enough to do something
                    while await state(store) < min(TASKS, done + 3) and time.monotonic() < begun + 3:
                        await asyncio.sleep(0.05)
                    await asyncio.sleep(draw.uniform(0.0, 0.3))
                    index = draw.randrange(len(workers))
                    kill(workers[index])
                    workers[index] = spawn()
                    kills += 1
            finally:
                for worker in workers:
                    kill(worker)
            for number, task_id in enumerate(made):
                await check(store, number, task_id)
            async with store.database.read() as connection:
                assert await connection.scalar(sa.select(sa.func.count()).where(about.c.key.in_(made))) == TASKS
        return kills

    async def check(store: Store, number: int, task_id: str) -> None:
        task = await store.tasks.get(task_id)
        assert (task.state, task.result) == ("finished", {"value": picture(number)})
        told = await store.events.since(task_id)
        assert [event.number for event in told] == list(range(1, len(told) + 1))
        assert [event.kind for event in told if event.last] == ["finished"]
        assert told[-1].last
        assert sum(event.kind == "started" for event in told) == task.attempts

    def spawn() -> BaseProcess:
        process = processes.Process(target=work, args=(tmp_path, url))
        process.start()
        return process

    kills = asyncio.run(run())
    print(kills, "kills")
    assert kills > 1


def test_a_told_id_is_stored(processes: ForkServerContext, url: str | None, tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    for _ in range(2):
        process = processes.Process(target=produce, args=(tmp_path, url, seen))
        before = seen.stat().st_size if seen.exists() else 0
        process.start()
        limit = time.monotonic() + 20
        while (seen.stat().st_size if seen.exists() else 0) < before + 33 * 5 and time.monotonic() < limit:
            time.sleep(0.01)
        kill(process)
    told = seen.read_text().split()

    async def run() -> None:
        async with await Store.open(tmp_path, url) as store:
            stored = {task.id for task in await store.tasks.of_owner("ann", limit=10_000)}
            assert len(told) >= 10
            assert set(told) <= stored
            assert len(stored) <= len(told) + 2  # at each kill one may have been stored and not told

    asyncio.run(run())


def test_several_processes_open_at_once(processes: ForkServerContext, url: str | None, tmp_path: Path) -> None:
    openers = [processes.Process(target=open_once, args=(tmp_path, url)) for _ in range(5)]
    for opener in openers:
        opener.start()
    for opener in openers:
        opener.join(30)
    assert [opener.exitcode for opener in openers] == [0] * 5

    async def run() -> None:
        async with await Store.open(tmp_path, url) as store:
            assert len(await store.tasks.of_owner("ann")) == 5

    asyncio.run(run())
