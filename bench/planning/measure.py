"""Measures what pictures and requests cost on this machine: batches without a server, then the rest by what a real server's processes use.

The server gets requests at random moments, a little of what it could take; what each process spends on one is read from ``/proc``.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from api.conf import Config, ModelConf, load_config
from bench.planning.arrivals import Trace, poisson, write
from bench.planning.costs import Cost, Costs
from bench.planning.simulate import simulate
from tests.serving import ROOT, Running, serve, write_config

USUAL = 0.5  # of what 32 clients get, while the requests' own costs are measured
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Replayed:
    """Seconds of each request, NaN where it was refused; statuses; the client's CPU seconds of a request."""

    seconds: NDArray[np.float64]
    statuses: Mapping[str, int]
    cpu: float


@dataclass(frozen=True)
class Spent:
    """CPU seconds since the beginning."""

    web: float
    loop: float  # of the engine's first thread, which talks to the web workers
    engine: float  # of the whole engine process


class Served:
    """A real server of one model, with the pids of its two processes."""

    def __init__(self, running: Running, model: str, folder: Path) -> None:
        self.running, self.model, self.folder = running, model, folder
        self.url = f"{running.url}/{{model}}/generate?seed={{seed}}&count={{count}}"
        self.web = running.process.pid
        (self.engine,) = running.engines()

    def spent(self) -> Spent:
        return Spent(cpu_of(f"{self.web}"), cpu_of(f"{self.engine}/task/{self.engine}"), cpu_of(f"{self.engine}"))

    def replay(self, trace: Trace) -> Replayed:
        path, out = self.folder / "trace.txt", self.folder / "seconds.npy"
        write(path, trace)
        told = call("bench.planning.replay", self.url, str(path), str(out))
        return Replayed(np.load(out), told["statuses"], told["cpu"])

    def press(self, clients: int, seconds: float) -> dict[str, Any]:
        """Clients that ask again when they are answered."""
        url = self.url.replace("{model}", self.model).replace("{count}", "1")
        told: dict[str, Any] = call("bench.load", url, str(clients), str(seconds))
        return told

    def batches(self) -> tuple[float, float]:
        """Batches and pictures so far; the engine tells them twice a second."""
        time.sleep(1.2)
        found = {}
        for line in self.running.client.get("/metrics").text.splitlines():
            for name in ("batch_size_count", "batch_size_sum"):
                if name in line and f'"{self.model}"' in line:
                    found[name] = float(line.split()[-1])
        return found.get("batch_size_count", 0.0), found.get("batch_size_sum", 0.0)


def cpu_of(task: str) -> float:
    fields = Path("/proc", task, "stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def call(module: str, *arguments: str) -> Any:
    """What one of our modules prints, in a process of its own."""
    done = subprocess.run([sys.executable, "-m", module, *arguments], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


@contextlib.contextmanager
def serving(config: Config, model: str) -> Iterator[Served]:
    """Serves the one model on the engine's settings of ``config``, with everything that it writes in a folder that is removed."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        engine = config.server.engine.model_dump() | {"linger": 1.0}
        path = write_config(folder, {model: own(config.models[model])}, {"engine": engine, "gpu": config.server.gpu})
        with serve(path) as running:
            yield Served(running, model, folder)
            running.client.close()


def own(model: ModelConf) -> dict[str, Any]:
    """The model's part of a TOML in another folder."""
    kept = model.model_dump(mode="json", exclude_defaults=True, include={"file", "family", "gpu", "precision", "max_batch", "diffusion"})
    return kept | {"file": str(Path(model.file).resolve())}


@dataclass(frozen=True)
class Measured:
    costs: Costs
    rate: float  # pictures a second that 32 clients got
    bare: Mapping[str, Any]  # what ``batches`` told
    drag: float


def measure(path: Path, model: str, seconds: float, served: Served, seed: int) -> Measured:
    """What the model costs; takes about six times ``seconds``.

    Processes that run beside each other are slower than alone, by caches and interpreter locks that the simulation knows nothing of.
    ``drag`` is the factor of the batches' time with which it has the median of what was replayed.
    """
    config = load_config(path)
    bare = call("bench.planning.batches", str(path), model, str(seconds))
    served.press(8, 1.0)
    rate = served.press(32, seconds)["rate"]
    lone = served.press(1, seconds)["p50"] / 1000
    before = served.spent()
    trace = poisson(rate * USUAL, 2 * seconds, seed, model)
    replayed = served.replay(trace)
    after = served.spent()
    web, loop = (after.web - before.web) / len(trace), (after.loop - before.loop) / len(trace)
    alone = {int(size): value for size, value in bare["seconds"].items()}
    cost = Cost(
        seconds=alone,
        cores=bare["cores"],
        encode=bare["encode"],
        max_batch=bare["max_batch"],
        steps=bare["steps"],
        bytes=bare["bytes"],
    )
    engine = config.server.engine
    costs = Costs(
        note=f"{model}, {time.strftime('%Y-%m-%d')}, {os.cpu_count()} cores",
        cores=len(os.sched_getaffinity(0)),
        threads=bare["threads"],
        together=max(1.0, statistics.median(bare["together"][size] / value for size, value in bare["seconds"].items())),
        encoders=engine.encoders,
        max_queue=engine.max_queue,
        deadline=engine.deadline,
        client=replayed.cpu,
        web=web,
        engine=loop,
        latency=max(0.0, lone - web - loop - replayed.cpu - cost.table[1] - cost.encode),
        models={model: cost},
    )
    drag = fit(trace, costs, float(np.nanmedian(replayed.seconds)))
    return Measured(dragged(costs, drag), rate, bare, drag)


def fit(trace: Trace, costs: Costs, median: float) -> float:
    low, high = 0.25, 8.0
    while high / low > 1.002:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if simulate(trace, dragged(costs, middle), 1).percentile(50) < median else (low, middle)
    return low


def dragged(costs: Costs, drag: float) -> Costs:
    """The same with all batches so many times as long."""

    def slow(cost: Cost) -> Cost:
        return Cost.model_validate(cost.model_dump() | {"seconds": {size: drag * value for size, value in cost.seconds.items()}})

    return costs.model_copy(update={"models": {name: slow(cost) for name, cost in costs.models.items()}})
