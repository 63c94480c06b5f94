"""``python -m bench soak``: everything at once at the server's capacity, for as long as one likes, while parts of it are killed.

The server runs under gunicorn, with a history, limits, and an engine. Its clients generate, mix, edit, walk, write prompts, have tasks made
and follow them, and some vanish. At random moments the engine or a web worker is killed, or the TOML is read again. In the end nothing
may be lost, done twice, or still taken; the memory may not have grown. The exit status is 1 if it is otherwise.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import math
import os
import random
import shutil
import signal
import sqlite3
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

import httpx

from bench.fitting import fit
from bench.storm import LAST, TASK, Storm
from tests.serving import ROOT, Running, serve

AT_WORK = 24  # requests that the server admits at once, and as many may wait
GROWTH = 0.05  # of memory
RECOVERY = 180.0  # seconds
SAMPLES = 25  # of the memory, at most one a second, that make a level
WARM = 120.0  # seconds after which an engine has the memory that it keeps: it takes 90 until it has met all that is asked
SHORT = 300.0  # seconds of a run below which its memory is told and not judged


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench soak", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--config", type=Path, default=ROOT / "default" / "config.toml", help="whose models are used")
    parser.add_argument("--gans", nargs="+", default=["faces", "glyphs"])
    parser.add_argument("--diffusion", nargs="*", default=["tiny-diffusion"])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--clients", type=int, default=28)
    parser.add_argument("--every", type=float, default=10.0, help="mean seconds from a recovery to the next fault")
    parser.add_argument("--no-history", dest="history", action="store_false")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    options = parser.parse_args(argv)
    machine = f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    print(f"{time.strftime('%Y-%m-%d %H:%M')}, {machine}, {options.minutes:g} minutes, seed {options.seed}\n", flush=True)
    folder = Path(tempfile.mkdtemp(prefix="soak-"))
    try:
        faults = soak(options, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    for text in faults:
        print(f"- **{text}**")
    print(f"\n{len(faults)} faults" if faults else "\nall requirements hold")
    return int(bool(faults))


def soak(options: argparse.Namespace, folder: Path) -> list[str]:
    """What must not have been."""
    server = {
        "limit": {
            "concurrency": {"enabled": True, "max_concurrency": AT_WORK, "max_queue": AT_WORK},
            "rate": {"enabled": True, "window": 20.0, "max_request": 1_000_000},
        },
        "engine": {"linger": 1.0},
    }
    sections = {"store": {"history": options.history, "undo": 10.0}, "tasks": {"lease": 5.0}, "blobs": {"expire": 900.0}}
    config = fit(options.config, folder, [*options.gans, *options.diffusion], server, **sections)
    with serve(config, workers=options.workers) as running:
        storm = Storm(running.url, options.gans, options.diffusion, random.Random(options.seed), history=options.history)
        run = Run(options, config, running, storm)
        asyncio.run(run.run())
        log = running.log.read_text(errors="replace")
    check_store(folder / "data" / "store.sqlite", storm)
    report(run, log)
    return storm.faults


class Run:
    """One run: clients, faults and the memory beside each other, then a look at what is left."""

    def __init__(self, options: argparse.Namespace, config: Path, server: Running, storm: Storm) -> None:
        self.config, self.server, self.storm = config, server, storm
        self.clients, self.every, self.chance = options.clients, options.every, random.Random(options.seed + 1)
        self.seconds = 60 * options.minutes
        self.mark = min(300.0, self.seconds / 3)
        self.window = min(30.0, self.seconds / 10)
        self.text = config.read_text()
        self.begun = 0.0
        self.recoveries: dict[str, list[float]] = {}
        self.memory: list[tuple[float, int, int]] = []  # when, and bytes of engines and of all others
        self.mended = 0.0  # when the server was whole again; infinity while something is broken
        self.doomed: set[int | str] = set()  # requests and tasks that waited when an engine was killed last

    @property
    def now(self) -> float:
        return time.monotonic() - self.begun

    async def run(self) -> None:
        self.begun = time.monotonic()
        end = asyncio.Event()
        listening = asyncio.create_task(self.storm.listen(end))
        async with asyncio.timeout(30):
            await self.storm.listening.wait()
        beside = [asyncio.create_task(self.watch_memory()), asyncio.create_task(self.break_things())]
        crowd = [asyncio.create_task(self.storm.client(number)) for number in range(self.clients)]
        await asyncio.wait([*crowd, *beside], timeout=self.seconds, return_when=asyncio.FIRST_EXCEPTION)
        self.storm.stop.set()
        await self.finish(crowd, beside)
        await self.check_rest()
        end.set()
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)

    async def finish(self, crowd: list[asyncio.Task[None]], beside: list[asyncio.Task[None]]) -> None:
        """Whoever waits gets an answer, what is broken is whole again, and every task comes to its end."""
        _, late = await asyncio.wait([*crowd, *beside], timeout=TASK)
        if late:
            self.storm.fault(f"{len(late)} clients still waited {TASK:.0f} s after the end")
        for task in late:
            task.cancel()
        for found in await asyncio.gather(*crowd, *beside, return_exceptions=True):
            if isinstance(found, Exception):
                self.storm.fault(f"the bench failed: {found!r}")
        left = time.monotonic() + 60
        while not self.storm.accepted <= self.storm.over.keys() and time.monotonic() < left:
            await asyncio.sleep(0.2)

    # What is broken.

    async def break_things(self) -> None:
        kinds: dict[str, Callable[[], Awaitable[None]]] = {
            "engine killed": self.kill_engine,
            "web worker killed": self.kill_worker,
            "HUP, the same TOML": self.reload,
            "HUP, a changed TOML": self.change,
            "HUP, a checkpoint gone": self.spoil,
        }
        order: list[str] = []
        while not self.storm.stop.is_set():
            await self.storm.pause(self.chance.expovariate(1 / self.every))
            while self.is_calm() and not self.storm.stop.is_set():
                await asyncio.sleep(0.5)
            if self.storm.stop.is_set():
                return
            if not order:
                order = self.chance.sample(list(kinds), len(kinds))
            name = order.pop()
            begun, self.mended = time.monotonic(), math.inf
            try:
                async with asyncio.timeout(RECOVERY):
                    await kinds[name]()
                    await self.serves_again()
            except TimeoutError:
                self.storm.fault(f"{name}: no recovery within {RECOVERY:.0f} s")
            self.recoveries.setdefault(name, []).append(time.monotonic() - begun)
            self.mended = self.now

    def is_calm(self) -> bool:
        """Whether nothing is to be broken: the memory is compared between times at which all processes have worked for a while."""
        rest = min(WARM, 2 * self.mark / 5)
        return any(mark - self.window - rest <= self.now <= mark for mark in (self.mark, self.seconds))

    async def serves_again(self) -> None:
        """Every model, asked anew."""
        async with httpx.AsyncClient(base_url=self.server.url, timeout=RECOVERY) as client:
            for model in self.storm.gans:
                while True:
                    with contextlib.suppress(httpx.TransportError):
                        if (await client.post(f"/{model}/generate", params={"seed": 1})).status_code == 200:
                            break
                    await asyncio.sleep(0.02)

    async def kill_engine(self) -> None:
        # What was being computed at two deaths is refused, so each has to get over the first one.
        while self.doomed & self.storm.waiting():
            await asyncio.sleep(0.1)
        engines = self.server.engines()
        self.doomed = self.storm.waiting()
        os.kill(self.chance.choice(engines), signal.SIGKILL)

    async def kill_worker(self) -> None:
        worker = self.chance.choice(self.workers())
        self.storm.kills.append(time.monotonic())
        os.kill(worker, signal.SIGKILL)
        while worker in self.workers():
            await asyncio.sleep(0.02)

    def workers(self) -> list[int]:
        return [pid for pid in children(self.server.process.pid) if b"gunicorn" in command(pid)]

    async def reload(self, outcome: str = "applied") -> None:
        old, before = set(self.workers()), await self.reloads(outcome)
        os.kill(self.server.process.pid, signal.SIGHUP)
        while await self.reloads(outcome) == before:
            await asyncio.sleep(0.1)
        if outcome == "applied":
            while old & set(self.workers()) or len(self.server.engines()) > 1:
                await asyncio.sleep(0.1)

    async def change(self) -> None:
        """Engines of the new configuration take over from those of the old one, and need no more memory for what they are told."""
        lines = [line for line in self.text.splitlines() if not line.startswith("awake")]
        place = lines.index("[server.engine]") + 1
        lines.insert(place, f"awake = 0.{self.chance.randrange(101, 200)}")
        self.text = "\n".join(lines) + "\n"
        self.config.write_text(self.text)
        await self.reload()

    async def spoil(self) -> None:
        """A checkpoint that is not there: everything stays as it was."""
        self.config.write_text(self.text.replace('.safetensors"', '.gone"', 1))
        try:
            await self.reload("refused")
        finally:
            self.config.write_text(self.text)

    async def reloads(self, outcome: str) -> float:
        """How many there were, by the server's own account."""
        async with httpx.AsyncClient(base_url=self.server.url, timeout=RECOVERY) as client:
            while True:
                with contextlib.suppress(httpx.TransportError):
                    lines = (await client.get("/metrics")).text.splitlines()
                    found = [line for line in lines if line.startswith(f'stylegan_reloads_total{{outcome="{outcome}"}}')]
                    return float(found[0].rpartition(" ")[2]) if found else 0.0

    # The memory.

    async def watch_memory(self) -> None:
        """Notes it while the server is whole and has worked for a while; a reload's two engines are no leak."""
        while not self.storm.stop.is_set():
            if self.now > self.mended + self.window / 3:
                self.memory.append((self.now, *await asyncio.to_thread(self.measure)))
            await self.storm.pause(min(1.0, self.window / 10))

    def measure(self) -> tuple[int, int]:
        """Bytes of engines and of the server's other processes."""
        root, engines = self.server.process.pid, set(self.server.engines())
        return sum(map(memory, engines)), sum(map(memory, {root, *children(root)} - engines))

    def level(self, mark: float) -> tuple[float, float]:
        """The memory before a mark: the median of some moments, since with requests at work it is never twice the same."""
        known = [sizes for at, *sizes in self.memory if at <= mark][-SAMPLES:] or [[0, 0]]
        engines, others = (statistics.median(sizes) for sizes in zip(*known, strict=True))
        return engines, others

    # What is left.

    async def check_rest(self) -> None:
        lost = self.storm.accepted - self.storm.over.keys()
        if lost:
            self.storm.fault(f"{len(lost)} accepted tasks never ended, such as {min(lost)}")
        await self.check_places()

    async def check_places(self) -> None:
        """The places of the dead are given to the first who have to wait for one; after that none is taken."""
        path, wanted, end = f"/{self.storm.gans[0]}/generate", f'"server";r={AT_WORK - 1}', time.monotonic() + 30
        async with httpx.AsyncClient(base_url=self.server.url, timeout=RECOVERY, limits=httpx.Limits(max_connections=None)) as client:
            told = ""
            while wanted not in told:
                if time.monotonic() > end:
                    self.storm.fault(f"places are taken for ever: {told}; {wanted} was expected")
                    break
                await asyncio.gather(*(client.post(path, params={"count": 4}) for _ in range(2 * AT_WORK)))
                await asyncio.sleep(0.3)
                told = (await client.post(path)).headers.get("ratelimit", "")


def check_store(path: Path, storm: Storm) -> None:
    """Whether every accepted task is there, ended once, with events from 1 on, and with one picture if it is finished."""
    with contextlib.closing(sqlite3.connect(path)) as db:
        states = dict(db.execute("SELECT id, state FROM tasks").fetchall())
        ends = Counter(task_id for task_id, kind in db.execute("SELECT task_id, kind FROM events") if kind in LAST)
        gaps = [
            row[0] for row in db.execute("SELECT task_id FROM events GROUP BY task_id HAVING count(*) <> max(number) OR min(number) <> 1")
        ]
        made = Counter(row[0] for row in db.execute("SELECT task_id FROM images WHERE task_id IS NOT NULL"))
    for task_id in storm.accepted:
        if states.get(task_id) not in LAST:
            storm.fault(f"task {task_id} is {states.get(task_id, 'gone')}")
    for task_id, state in states.items():
        if ends[task_id] != (state in LAST):
            storm.fault(f"task {task_id} is {state} and ended {ends[task_id]} times")
        if made[task_id] > (state == "finished"):
            storm.fault(f"task {task_id} is {state} and has {made[task_id]} pictures")
    for task_id in gaps:
        storm.fault(f"task {task_id}: its events are not numbered from 1 on")


def children(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def command(pid: int) -> bytes:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def memory(pid: int) -> int:
    """Bytes of a process: its part of what it shares since a fork, and all that is in memory of the files that it maps.

    Its part of these (PSS) would depend on who else on the machine has mapped them: an engine's falls by 60 MB when another one starts.
    """
    with contextlib.suppress(OSError):
        return counted(pid, "smaps_rollup", "Pss_Anon:", "Pss_Shmem:") + counted(pid, "status", "RssFile:")
    return 0


def counted(pid: int, file: str, *names: str) -> int:
    """The sum of some of the numbers, in kB, that the kernel tells of a process; answered in bytes."""
    return sum(1024 * int(line.split()[1]) for line in Path(f"/proc/{pid}/{file}").read_text().splitlines() if line.startswith(names))


def report(run: Run, log: str) -> None:
    storm = run.storm
    print("| requests | served | refused | cut by a killed worker | p50 ms | p99 ms |\n|---|---|---|---|---|---|")
    for kind in sorted(storm.times):
        found, times = storm.outcomes[kind], sorted(storm.times[kind])
        spent = " | ".join(f"{1000 * times[min(len(times) - 1, int(len(times) * share))]:.0f}" for share in (0.5, 0.99))
        print(f"| {kind} | {found['served']} | {found['refused']} | {found['cut']} | {spent} |")
    others = {kind: dict(found) for kind, found in storm.outcomes.items() if kind not in storm.times}
    print("\n" + "; ".join(f"{kind}: {', '.join(f'{n} {what}' for what, n in found.items())}" for kind, found in others.items()))
    ends = Counter(storm.over[task_id] for task_id in storm.accepted & storm.over.keys())
    print(f"{len(storm.accepted)} tasks accepted: {', '.join(f'{n} {kind}' for kind, n in ends.items()) or 'none over'}")
    print("\n| what was done to it | times | served again after, median s | longest s |\n|---|---|---|---|")
    for name, spans in run.recoveries.items():
        print(f"| {name} | {len(spans)} | {statistics.median(spans):.1f} | {max(spans):.1f} |")
    judge_memory(run)
    print(f"tracebacks in the log: {log.count('Traceback (most recent call last)')}")


def judge_memory(run: Run) -> None:
    first, last = run.level(run.mark), run.level(run.seconds)
    growth = sum(last) / sum(first) - 1 if sum(first) else 0.0
    parts = [f"{sum(level) / 1e6:.0f} MB ({level[0] / 1e6:.0f} of them the engine's)" for level in (first, last)]
    print(f"\nmemory of all processes: {parts[0]} after {run.mark:.0f} s, {parts[1]} at the end: {growth:+.1%}")
    if run.seconds < SHORT:
        print(f"  (of runs shorter than {SHORT / 60:.0f} minutes the memory is not judged)")
    elif growth > GROWTH:
        run.storm.fault(f"the memory grew by {growth:.1%}; at most {GROWTH:.0%} is allowed")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
