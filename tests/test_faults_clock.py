"""The wall clock moved by an hour, forward and back, while requests, places and tasks are held. Leases and windows go by other clocks."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults import Clock, Watch, wait_for
from tests.serving import ROOT, serve
from tests.test_tasks import create, events, write

HOUR = 3700
LEASE = 3.0
LONG = bool(os.environ.get("LONG"))

# A worker that says what happens to it: takes a task, holds it as long as a file is there, and finishes it.
WORKER = """
import asyncio, sys
from pathlib import Path
from api.errors import LeaseLost
from api.store.store import Options, Store

async def act(folder, name, lease):
    async with await Store.open(folder / "data", options=Options(max_attempts=10)) as store:
        claim = await store.queue.claim(name, lease)
        print("looked", flush=True)
        while True:
            claim = claim or await store.queue.next(name, lease)
            print("took", flush=True)
            async def work():
                while (folder / "busy").exists():
                    await asyncio.sleep(0.02)
                return {"by": name}
            try:
                await store.queue.finish(claim, await store.queue.hold(claim, work()))
                print("finished", flush=True)
            except LeaseLost as error:
                print("lost", error.detail, flush=True)
            claim = None

asyncio.run(act(Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])))
"""
MAKER = """
import asyncio, sys
from pathlib import Path
from api.store.store import Store

async def act(folder):
    async with await Store.open(folder / "data") as store:
        await store.tasks.create("ann", "x", {})

asyncio.run(act(Path(sys.argv[1])))
"""


@pytest.fixture
def clock(tmp_path: Path) -> Iterator[Clock]:
    """Moves that of all processes which a test starts."""
    moved = Clock(tmp_path)
    moved.check()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in moved.environment.items():
            patch.setenv(name, value)
        yield moved


class Worker:
    def __init__(self, folder: Path, name: str) -> None:
        self.log = folder / f"{name}.log"
        with self.log.open("wb") as out:
            command = [sys.executable, "-c", WORKER, str(folder), name, str(LEASE)]
            self.process = subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=subprocess.STDOUT)

    @property
    def said(self) -> list[str]:
        return self.log.read_text().splitlines()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@contextlib.contextmanager
def workers(folder: Path) -> Iterator[tuple[Worker, Worker]]:
    """One that holds a task, and one that waits for one."""
    (folder / "busy").touch()
    subprocess.run([sys.executable, "-c", MAKER, str(folder)], cwd=ROOT, check=True, timeout=60)
    holder = Worker(folder, "holder")
    wait_for(lambda: holder.said == ["looked", "took"], "the task is taken")
    other = Worker(folder, "other")
    wait_for(lambda: other.said == ["looked"], "the other looks for tasks")
    try:
        yield holder, other
    finally:
        holder.kill()
        other.kill()


def rarely(seconds: int) -> object:
    return pytest.param(seconds, marks=pytest.mark.skipif(not LONG, reason="LONG=1"))


@pytest.mark.parametrize("seconds", [HOUR, rarely(-HOUR)])
def test_a_task_stays_with_its_worker(clock: Clock, tmp_path: Path, seconds: int) -> None:
    with workers(tmp_path) as (holder, other):
        for step in range(1, 5):  # one that renews by chance before the other looks is no proof
            clock.move(step * seconds)
            with pytest.raises(AssertionError):
                wait_for(lambda: len(holder.said) > 2 or len(other.said) > 1, "somebody says something", 0.4 * LEASE)
        (tmp_path / "busy").unlink()
        wait_for(lambda: holder.said == ["looked", "took", "finished"], "the task is finished")
        assert other.said == ["looked"]


@pytest.mark.parametrize("seconds", [-HOUR, rarely(HOUR)])
def test_a_dead_worker_s_task_is_taken_all_the_same(clock: Clock, tmp_path: Path, seconds: int) -> None:
    with workers(tmp_path) as (holder, other):
        holder.kill()
        clock.move(seconds)
        watch = Watch()
        wait_for(lambda: other.said == ["looked", "took"], "the other takes the task")
        watch.tell(f"the clock was moved by {seconds} s and a worker died: its task is taken, lease {LEASE} s")


def test_limits_and_tasks_of_a_server(clock: Clock, tmp_path: Path) -> None:
    """A quota is not given back early and comes back in time; nothing is stuck."""
    limit = {"rate": {"enabled": True, "max_request": 3, "window": 3600.0}, "concurrency": {"enabled": True, "max_concurrency": 1}}
    with serve(write(tmp_path, server={"limit": limit}, tasks={"lease": LEASE})) as server:
        task_id = create(server, seed=1)
        assert events(server, task_id)[-1][1] == "finished"
        for _ in range(2):
            assert server.client.post("/plain/generate").status_code == 200
        for seconds in (HOUR, -HOUR, 0):
            clock.move(seconds)
            refused = server.client.post("/plain/generate")
            assert (refused.status_code, 0 < int(refused.headers["retry-after"]) <= 3600) == (429, True)
            assert server.client.get(f"/task/{task_id}").json()["event_type"] == "finished"
            assert server.client.get("/plain/image?seed=1").status_code == 429
            server.wait_ready()
