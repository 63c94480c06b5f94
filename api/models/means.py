"""What w is like: its mean, toward which truncation pulls, and a sample by which directions are measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - torch's own habit

from api.models.jobs import Floats

SAMPLES, PER_CLASS = 65_536, 256  # latents for the mean w: in all, and of each class at least
MEAN_SEED, SAMPLE_SEED = 0, 1
TYPICAL = 2048  # w by which directions and projections are measured

MappingNetwork = Callable[[Tensor, Tensor | None], Tensor]
"""z (N, z_size) and c (N, classes) one-hot or ``None`` ↦ w (N, w_size); a row does not depend on the others."""


@dataclass(frozen=True)
class Means:
    """The mean w that ``psi`` pulls toward: ``all`` (size,), ``classes`` (categories, size) or ``None``; which of them ``choice`` tells."""

    all: Floats
    classes: Floats | None
    choice: str | None = None  # "class", "global", None: the class's where a class was asked for

    def of(self, label: int | None, asked: bool) -> Floats:
        if self.classes is None or label is None or self.choice == "global" or (self.choice is None and not asked):
            return self.all
        return self.classes[label]


def one_hot(labels: Sequence[int], classes: int) -> Tensor:
    return F.one_hot(torch.tensor(labels), classes).float()


@torch.inference_mode()
def compute_means(mapping: MappingNetwork, z_size: int, classes: int, device: str, rows: int) -> Means:
    """Monte Carlo from a fixed seed, ``rows`` latents at a time; all classes (0: none) get the same latents, the mean of all is theirs.

    Each latent comes with its negative, which has the same distribution: what is linear in the mapping then has no error.
    """
    count = max(PER_CLASS, SAMPLES // max(classes, 1))
    half = np.random.RandomState(MEAN_SEED).randn(-(-count // 2), z_size).astype(np.float32)
    z = torch.from_numpy(np.concatenate([half, -half])).to(device)
    table = np.stack([mean_of(mapping, z, c, rows) for c in each_class(classes, rows, device)])
    return Means(table.mean(axis=0).astype(np.float32), table.astype(np.float32) if classes else None)


@torch.inference_mode()
def sample_styles(mapping: MappingNetwork, z_size: int, classes: int, device: str, rows: int, count: int = TYPICAL) -> Floats:
    """(count, w_size): w of latents, and of classes where there are any, from a fixed seed; ``rows`` at a time."""
    random = np.random.RandomState(SAMPLE_SEED)
    z = torch.from_numpy(random.randn(count, z_size).astype(np.float32)).to(device)
    c = one_hot(random.randint(classes, size=count).tolist(), classes).to(device) if classes else None
    parts = [mapping(z[i : i + rows], None if c is None else c[i : i + rows]).float().cpu() for i in range(0, count, rows)]
    return np.asarray(torch.cat(parts).numpy())


def each_class(classes: int, rows: int, device: str) -> Iterator[Tensor | None]:
    if not classes:
        yield None
    for label in range(classes):
        yield one_hot([label] * rows, classes).to(device)


def mean_of(mapping: MappingNetwork, z: Tensor, c: Tensor | None, rows: int) -> NDArray[np.float64]:
    total = sum(mapping(part, None if c is None else c[: len(part)]).double().sum(dim=0) for part in z.split(rows))
    return np.asarray((torch.as_tensor(total) / len(z)).cpu().numpy())
