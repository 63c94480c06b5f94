"""What a GAN picture is drawn from: latent, class and noise, each from the job's own seed and on the CPU, so that they never vary."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from math import isfinite

import numpy as np
from numpy.typing import NDArray

from api.errors import BadArray, BadInput, NoSuchDirection, NoSuchLabel
from api.models.base import Info
from api.models.jobs import Edit, Floats, Generate, Noise, Project, Synthesize

SEEDS = 2**32
POSE_LIMIT = 1e4  # degrees or sides: beyond, float32 no longer tells pixels apart
MOST_STEPS, MOST_STARTS = 2000, 32  # of a projection
STATES = threading.local()
NOISE_STREAM = 1  # keeps the noise's stream apart from others that a seed may start


def draw_latent(job: Generate, size: int, classes: int = 0) -> tuple[Floats, int | None]:
    """z = sd · N(0, I) + latent, shape (size,), as NVIDIA's tools draw it; and a class index where a network has classes, drawn after z."""
    random = random_state(job.seed or 0)
    z = random.randn(1, size)[0] * job.sd
    if job.latent is not None:
        z += job.latent
    return z.astype(np.float32), int(random.randint(classes)) if classes else None


def random_state(seed: int) -> np.random.RandomState:
    """As ``RandomState(seed)``, one for each thread: making one anew takes longer than all that a picture draws from it."""
    if not hasattr(STATES, "random"):
        STATES.random = np.random.RandomState(0)
    random: np.random.RandomState = STATES.random
    random.seed(seed)
    return random


def draw_noise(seeds: Sequence[int | None], counts: Sequence[int]) -> list[Floats]:
    """Standard normal noise for several layers: (N, count) per layer, row i from ``seeds[i]`` alone; all zero where that is ``None``."""
    rows = np.zeros((len(seeds), sum(counts)), np.float32)
    for row, seed in zip(rows, seeds, strict=True):
        if seed is not None:
            generator = np.random.Generator(np.random.PCG64([seed, NOISE_STREAM]))
            generator.standard_normal(out=row, dtype=np.float32)
    ends = np.cumsum(counts)
    return [rows[:, end - count : end] for end, count in zip(ends, counts, strict=True)]


def truncate(w: NDArray[np.float32], mean: NDArray[np.float32], psi: float) -> NDArray[np.float32]:
    """w pulled toward the mean: psi 1 leaves it, 0 is the mean (Karras et al. 2019, section B)."""
    return w if psi == 1 else mean + np.float32(psi) * (w - mean)


def check_seed(seed: int | None) -> None:
    if seed is not None and not 0 <= seed < SEEDS:
        raise BadInput(f"seed {seed} is out of range; 0 to {SEEDS - 1} is expected")


def check_noise(info: Info, noise: Noise) -> None:
    if noise not in info.noises:
        raise BadInput(f"noise {noise!r} is unknown to this model; choose of {', '.join(info.noises)}")


def check_generate(info: Info, job: Generate) -> None:
    """Raises ``BadInput``, ``BadArray`` or ``NoSuchLabel``."""
    check_rendering(info, job)
    if job.label is not None and job.label not in (info.labels or ()):
        raise NoSuchLabel(job.label)
    if not (isfinite(job.sd) and job.sd >= 0):
        raise BadInput(f"sd {job.sd} is not a finite number from 0 up")
    if job.latent is not None and np.shape(job.latent) != (info.z_size,):
        raise BadArray(f"the latent has shape {np.shape(job.latent)}; ({info.z_size},) is expected")


def check_synthesize(info: Info, job: Synthesize) -> None:
    """Raises ``BadInput`` or ``BadArray``."""
    check_rendering(info, job)
    check_styles(info, job.styles)


def check_rendering(info: Info, job: Generate | Synthesize) -> None:
    """What pictures from latents and from styles share. Raises ``BadInput``."""
    check_seed(job.seed)
    check_seed(job.noise_seed)
    check_noise(info, job.noise)
    if not isfinite(job.psi):
        raise BadInput(f"psi {job.psi} is not a finite number")
    if job.cutoff is not None and not 0 <= job.cutoff <= info.levels:
        raise BadInput(f"cutoff {job.cutoff} is out of range; 0 to {info.levels} is expected")
    check_pose(info, job)


def check_pose(info: Info, job: Generate | Synthesize) -> None:
    """Raises ``BadInput`` for a rotation or shift that is no number, or that this model cannot do."""
    values = [job.rotate, *job.translate]
    if len(values) != 3 or not all(isfinite(value) and abs(value) < POSE_LIMIT for value in values):
        raise BadInput(f"rotate and translate are {values}; one and two finite numbers are expected")
    if any(values) and not info.extra.get("movable"):
        raise BadInput(f"model {info.id!r} cannot rotate or translate its pictures; StyleGAN3 models can")


def check_edit(info: Info, job: Edit) -> None:
    """Raises ``NoSuchDirection``, or ``BadInput`` for amounts and levels that cannot be, beside what ``check_generate`` raises."""
    check_generate(info, job)
    check_styles(info, job.styles)
    known = {told["name"] for told in info.extra.get("directions", ())}
    for name in [*job.directions, *job.layers]:
        if name not in known:
            raise NoSuchDirection(name)
    for name, amount in job.directions.items():
        if not isfinite(amount):
            raise BadInput(f"amount {amount} for direction {name!r} is not a finite number")
    for name, levels in job.layers.items():
        if name not in job.directions:
            raise BadInput(f"layers for direction {name!r}, which is not among the directions {', '.join(job.directions) or 'given: none'}")
        if not levels or not all(0 <= level < info.levels for level in levels):
            raise BadInput(f"layers {list(levels)} for direction {name!r}; at least one of 0 to {info.levels - 1} is expected")


def check_project(info: Info, job: Project) -> None:
    """Raises ``BadInput`` or ``NoSuchLabel``."""
    check_seed(job.seed)
    if job.noise is not None:
        check_noise(info, job.noise)
    if job.label is not None and job.label not in (info.labels or ()):
        raise NoSuchLabel(job.label)
    for name, value, most in (("steps", job.steps, MOST_STEPS), ("starts", job.starts, MOST_STARTS)):
        if value is not None and not 1 <= value <= most:
            raise BadInput(f"{name} is {value}; 1 to {most} are expected")
    if not 0 <= job.regularisation <= 1:
        raise BadInput(f"regularisation is {job.regularisation}; it must lie within 0 … 1")
    if job.image.dtype != np.uint8 or job.image.ndim != 3 or job.image.shape[2] != 3 or 0 in job.image.shape:
        raise BadInput(f"the picture is {job.image.dtype} {job.image.shape}; uint8 (height, width, 3) is expected")


def check_styles(info: Info, styles: Floats | None) -> None:
    """Raises ``BadArray``."""
    if styles is not None and np.shape(styles) != (info.levels, info.w_size):
        raise BadArray(f"the styles have shape {np.shape(styles)}; ({info.levels}, {info.w_size}) is expected")
