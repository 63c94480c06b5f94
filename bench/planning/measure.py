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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from api.conf import Config, ModelConf, load_config
from bench.numbers import read_numbers
from bench.planning.arrivals import Trace, poisson, write
from bench.planning.costs import Cost, Costs
from bench.planning.simulate import simulate
from tests.serving import ROOT, Running, serve, write_config

TURNS, CLIENTS = 5, 32
USUAL = 0.5  # of what so many clients get, while the requests' own costs are measured
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Turn:
    """A trace that was replayed: seconds of each request, NaN where it was refused; statuses; CPU seconds of all requests together."""

    trace: Trace
    seconds: NDArray[np.float64]
    statuses: Mapping[str, int]
    client: float
    web: float
    loop: float  # the engine's first thread, which talks to the web workers


class Served:
    """A real server of one model, with the pids of its two processes."""

    def __init__(self, running: Running, model: str, folder: Path) -> None:
        self.running, self.model, self.folder = running, model, folder
        self.url = f"{running.url}/{{model}}/generate?seed={{seed}}&count={{count}}"
        self.web = running.process.pid
        (self.engine,) = running.engines()

    def spent(self) -> tuple[float, float]:
        """CPU seconds of the web worker and of the engine's first thread so far."""
        return cpu_of(f"{self.web}"), cpu_of(f"{self.engine}/task/{self.engine}")

    def take(self, trace: Trace) -> Turn:
        path, out = self.folder / "trace.txt", self.folder / "seconds.npy"
        write(path, trace)
        before = self.spent()
        told = call("bench.planning.replay", self.url, str(path), str(out))
        web, loop = (now - then for now, then in zip(self.spent(), before, strict=True))
        return Turn(trace, np.load(out), told["statuses"], told["cpu"], web, loop)

    def press(self, clients: int, seconds: float) -> dict[str, Any]:
        """Clients that ask again when they are answered."""
        url = self.url.replace("{model}", self.model).replace("{count}", "1")
        told: dict[str, Any] = call("bench.load", url, str(clients), str(seconds))
        return told

    def batches(self) -> tuple[float, float]:
        """Batches and pictures so far; the engine tells them twice a second."""
        found = read_numbers(self.running.url, self.model)
        return found.get("stylegan_batch_size_count", 0.0), found.get("stylegan_batch_size_sum", 0.0)


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
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:  # the engine takes its time to leave
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
    drag: float


def measure(
    path: Path, model: str, seconds: float, served: Served, seed: int, between: Callable[[int, float], None] = lambda turn, rate: None
) -> Measured:
    """What the model costs; takes about six times ``seconds``.

    Processes that run beside each other are slower than alone, by caches and interpreter locks that the simulation knows nothing of.
    ``drag`` is the factor of a lone picture's time, all batches being as much longer, with which it has the median of requests at random
    moments. Those are replayed in turns, with ``between`` told the rate after each, so that a busy moment of the machine meets both. What
    a lone request takes longer than its parts then is the latency that is nobody's work.
    """
    config = load_config(path)
    bare = call("bench.planning.batches", str(path), model, str(seconds))
    served.press(8, 1.0)
    rate = served.press(CLIENTS, seconds)["rate"]
    lone = served.press(1, seconds)["p50"] / 1000
    turns = []
    for number in range(TURNS):
        turns.append(served.take(poisson(rate * USUAL, 2 * seconds / TURNS, seed + number, model)))
        between(number, rate)
    count = sum(len(turn.trace) for turn in turns)
    web, loop, client = (sum(parts) / count for parts in zip(*((turn.web, turn.loop, turn.client) for turn in turns), strict=True))
    cost = Cost(
        seconds=bare["seconds"], **{key: bare[key] for key in ("cores", "team", "alone", "calm", "encode", "max_batch", "steps", "bytes")}
    )
    engine = config.server.engine
    costs = Costs(
        note=f"{model}, {time.strftime('%Y-%m-%d')}, {os.cpu_count()} cores",
        cores=len(os.sched_getaffinity(0)),
        local=True,
        threads=bare["threads"],
        together=max(1.0, statistics.median(bare["together"][size] / value for size, value in bare["seconds"].items())),
        scatter=bare["scatter"],
        encoders=engine.encoders,
        max_queue=engine.max_queue,
        deadline=engine.deadline,
        client=client,
        web=web,
        engine=loop,
        models={model: cost},
    )
    drag = fit(turns, costs, lone)
    return Measured(dragged(costs, drag, lone), rate, drag)


def fit(turns: Sequence[Turn], costs: Costs, lone: float) -> float:
    """The drag with which the simulation has the median of what was replayed."""
    wanted = np.nanmedian(np.concatenate([turn.seconds for turn in turns]))
    low, high = 0.25, 8.0
    while high / low > 1.002:
        middle = math.sqrt(low * high)
        slower = dragged(costs, middle, lone)
        found = np.median(np.concatenate([simulate(turn.trace, slower, 1).latencies for turn in turns]))
        low, high = (middle, high) if found < wanted else (low, middle)
    return low


def dragged(costs: Costs, drag: float, lone: float) -> Costs:
    """The same with all batches longer, and the latency with which a lone request takes so many seconds, if it can.

    By as much as a picture alone is: what is not in the caches when a batch begins is no more for a large one.
    """

    def slow(cost: Cost) -> Cost:
        more = (drag - 1) * cost.seconds[1]
        longer = {"seconds": {size: value + more for size, value in cost.seconds.items()}, "alone": drag * cost.alone}
        return Cost.model_validate(cost.model_dump() | longer)

    models = {name: slow(cost) for name, cost in costs.models.items()}
    (cost,) = models.values()
    latency = lone - costs.client - costs.web - costs.engine - (cost.alone or cost.table[1]) - cost.encode
    return costs.model_copy(update={"models": models, "latency": max(0.0, latency)})
