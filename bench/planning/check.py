"""A real server and the simulation before the same requests."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from api.conf import load_config
from bench.planning import measure
from bench.planning.arrivals import poisson
from bench.planning.measure import Measured
from bench.planning.simulate import simulate

AIM = 0.2


def measured(path: Path, model: str, seconds: float, seed: int) -> Measured:
    with measure.serving(load_config(path), model) as served:
        return measure.measure(path, model, seconds, served, seed)


def main(path: Path, model: str, seconds: float, load: float, seed: int) -> int:
    """Prints both; 0 if the p95 agree within a fifth."""
    with measure.serving(load_config(path), model) as served:
        found = measure.measure(path, model, 3.0, served, seed + 1)
        costs, rate = found.costs, found.rate
        trace = poisson(rate * load, seconds, seed, model)
        before = served.batches()
        replayed = served.replay(trace)
        batches, pictures = (now - then for now, then in zip(served.batches(), before, strict=True))
    result = simulate(trace, costs, 1, seed)
    answered = replayed.seconds[~np.isnan(replayed.seconds)]
    print(f"seed {seed}; drag {found.drag:.2f}; {costs.model_dump_json(exclude_defaults=True)}")
    print(
        f"{len(trace)} requests in {trace.span:.0f} s: {load:.0%} of the {rate:.0f} pictures/s of 32 clients; statuses {replayed.statuses}"
    )
    print("| | real | simulated | simulated ÷ real |\n|---|---|---|---|")
    rows = [(f"p{percent} ms", 1000 * np.percentile(answered, percent), 1000 * result.percentile(percent)) for percent in (50, 95, 99)]
    for name, real, told in [*rows, ("pictures in a batch", pictures / max(1.0, batches), result.mean_batch)]:
        print(f"| {name} | {real:.2f} | {told:.2f} | {told / real:.2f} |")
    ratio = result.percentile(95) / float(np.percentile(answered, 95))
    print(f"p95 {'within' if abs(ratio - 1) <= AIM else 'NOT within'} {AIM:.0%}")
    return 0 if abs(ratio - 1) <= AIM else 1
