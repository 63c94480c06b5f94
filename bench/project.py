"""How well pictures are found again: projections of a model's own faces, whose true styles are not told to it.

Each picture is made from a seed, with random noise, and projected. PSNR is that of the picture which the found styles make, against the
original; a second one is that of its noise alone, which no styles can explain.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from api.conf import load_config
from api.models.base import Model, go_on
from api.models.jobs import Generate, Job, Output, Pixels, Project
from api.models.registry import load_model

FIRST_SEED = 1_000_000  # far from those of a projection's candidates, which are seed, seed + 1, …


def main(argv: Sequence[str]) -> int:
    options = parse(argv)
    torch.set_num_threads(options.threads)
    model = load_model(load_config(Path(options.config)), options.model)
    told = {"steps": options.steps, "space": options.space, "regularisation": options.regularisation, "fit_noise": options.fit_noise}
    found, floor, seconds, cpu, away = [], [], [], [], []
    for index in range(options.count):
        original, plain = (make(model, Generate(model=options.model, seed=FIRST_SEED + index, noise=noise)) for noise in ("random", "none"))
        begin, before = time.perf_counter(), time.process_time()
        projected = make(model, Project(model=options.model, seed=index, starts=options.starts, image=original.image, **told))
        seconds.append(time.perf_counter() - begin)
        cpu.append(time.process_time() - before)
        found.append(psnr(projected.image, original.image))
        floor.append(psnr(plain.image, original.image))
        away.append(distance(projected, original))
    print(f"{options.model}, {options.count} pictures, {', '.join(f'{name} {value}' for name, value in told.items())}")
    low = sorted(found)
    print(f"PSNR in dB: mean {statistics.mean(found):.1f}, least {low[0]:.1f}, a tenth below {low[len(low) // 10]:.1f}")
    print(f"the noise alone: {statistics.mean(floor):.1f} dB")
    print(f"styles from the true ones: {statistics.mean(away):.2f} standard deviations")
    print(f"{statistics.median(seconds):.2f} s each, {statistics.median(cpu):.2f} s of CPU time, on {options.threads} threads (medians)")
    return 0


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench project", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--config", default="default/config.toml")
    parser.add_argument("--model", default="faces")
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--starts", type=int, default=None)
    parser.add_argument("--space", default="w+", choices=["w", "w+"])
    parser.add_argument("--regularisation", type=float, default=0.001)
    parser.add_argument("--fit-noise", action="store_true")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    return parser.parse_args(argv)


def make(model: Model, job: Job) -> Output:
    (output,) = model.run([model.prepare(job)], go_on)
    return output


def psnr(image: Pixels, other: Pixels) -> float:
    return float(10 * np.log10(255**2 / max(1e-6, np.square(image.astype(float) - other).mean())))


def distance(projected: Output, original: Output) -> float:
    """Root mean square difference of the styles, in units of their own."""
    assert projected.styles is not None
    assert original.styles is not None
    return float(np.sqrt(np.square(projected.styles - original.styles).mean()) / original.styles.std())
