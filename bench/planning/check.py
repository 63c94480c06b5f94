"""A real server and the simulation before the same requests."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from api.conf import load_config
from bench.planning import measure
from bench.planning.arrivals import poisson
from bench.planning.measure import CLIENTS, TURNS, Measured, Turn
from bench.planning.simulate import Closed, simulate

AIM = 0.2


def measured(path: Path, model: str, seconds: float, seed: int) -> Measured:
    with measure.serving(load_config(path), model) as served:
        return measure.measure(path, model, seconds, served, seed)


def main(path: Path, model: str, seconds: float, load: float, seed: int) -> int:
    """Prints both; 0 if the p95 agree within a fifth.

    What is compared is taken in turns with what the costs are measured on; the requests of the two differ.
    """
    turns: list[Turn] = []
    made = np.zeros(2)
    with measure.serving(load_config(path), model) as served:

        def between(turn: int, rate: float) -> None:
            nonlocal made
            before = served.batches()
            turns.append(served.take(poisson(rate * load, seconds / TURNS, seed + TURNS + turn, model)))
            made += np.subtract(served.batches(), before)

        found = measure.measure(path, model, 3.0, served, seed, between)
    results = [simulate(turn.trace, found.costs, 1, seed) for turn in turns]
    real, told = np.concatenate([turn.seconds for turn in turns]), np.concatenate([result.latencies for result in results])
    refused = np.isnan(real).sum()
    print(f"seed {seed}; drag {found.drag:.2f}; {found.costs.model_dump_json(exclude_defaults=True)}")
    print(f"{len(real)} requests in {seconds:.0f} s, {load:.0%} of the {found.rate:.0f} pictures/s of 32 clients; {refused} not answered")
    print("| | real | simulated | simulated ÷ real |\n|---|---|---|---|")
    rows = [(f"p{percent} ms", 1000 * np.nanpercentile(real, percent), 1000 * np.percentile(told, percent)) for percent in (50, 95, 99)]
    sizes = sum(result.pictures for result in results) / sum(result.batches.total() for result in results)
    rows += [("pictures in a batch", made[1] / max(1.0, made[0]), sizes)]
    rows += [(f"pictures/s of {CLIENTS} clients", found.rate, Closed(found.costs, model, CLIENTS, 3.0).rate())]
    for name, one, other in rows:
        print(f"| {name} | {one:.2f} | {other:.2f} | {other / one:.2f} |")
    ratio = np.percentile(told, 95) / np.nanpercentile(real, 95)
    print(f"p95 {'within' if abs(ratio - 1) <= AIM else 'NOT within'} {AIM:.0%}")
    return 0 if abs(ratio - 1) <= AIM else 1
