"""The contracts of the domain: what a checkpoint, a model and its description are."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from api.models.jobs import Job, Noise, Output, Pixels

Array = NDArray[np.generic]

BESIDE = frozenset(
    ("mean_w", "class_mean_w", "w_avg", "noise_const", "magnitude_ema", "freqs", "phases", "transform", "up_filter", "down_filter")
)
"""What arrays are called, behind their last dot, that a checkpoint holds beside the network's parameters."""


@dataclass(frozen=True, kw_only=True)
class Description:
    """What a checkpoint's header tells: enough to check a configuration without loading weights."""

    format: str  # the module in formats/ that reads it
    family: str  # the module in families/ that serves it
    arguments: Mapping[str, Any]  # the architecture, in JSON types, as the family's network takes it
    labels: tuple[str, ...] | None = None  # class names of a conditional model
    tensors: int = 0
    parameters: int = 0  # of the network: see ``count_parameters``
    notes: tuple[str, ...] = ()  # what a person should know, such as an ambiguous guess


def count_parameters(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """How many numbers of a GAN's checkpoint were learned, as ``Info.parameters`` tells of the loaded network."""
    return sum(math.prod(shape) for name, shape in shapes.items() if name.rpartition(".")[2] not in BESIDE)


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint's content as data: NumPy arrays by their name in our own network."""

    description: Description
    tensors: Mapping[str, Array]


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where and as what a model is to live, with everything that the TOML inherits already resolved."""

    id: str
    digest: str = ""
    device: str = "cpu"  # in torch's words: "cpu", "cuda:0"
    precision: str = "float32"  # or "float16", "bfloat16"
    max_batch: int = 16
    lossy: bool = False


class Info(msgspec.Struct, frozen=True, kw_only=True, tag=True, array_like=True):
    """What a loaded model is and can do. Plain data: web workers get it from the engine."""

    id: str
    name: str
    description: str
    family: str
    width: int
    height: int
    lossy: bool
    device: str
    digest: str  # of the checkpoint and of what in the TOML changes its pictures; part of every ETag
    kinds: tuple[str, ...]  # names of the job classes it takes
    labels: tuple[str, ...] | None = None
    z_size: int = 0
    w_size: int = 0
    levels: int = 0
    noises: tuple[Noise, ...] = ()
    parameters: int = 0
    long: bool = False  # runs in many steps and gives way between them
    extra: Mapping[str, Any] = msgspec.field(default_factory=dict)

    @property
    def conditional(self) -> bool:
        return self.labels is not None


Previews = Callable[[], Sequence[Pixels | None]]


class Step(Protocol):
    """Called by a long model between steps; raises ``Cancelled`` when nobody waits for any of the batch any more."""

    def __call__(self, index: int, total: int, previews: Previews | None = None) -> None: ...


def go_on(index: int, total: int, previews: Previews | None = None) -> None:
    """The ``Step`` of jobs that nobody watches or waits to cancel."""


class Model(Protocol):
    """What a family's ``load`` returns."""

    info: Info

    def prepare(self, job: Job) -> Job:
        """Cheap checks and defaults: label, shapes, seed drawn. Raises ``BadInput`` or ``NotFound``."""
        ...

    def key(self, job: Job) -> Hashable:
        """Jobs with equal keys may share a batch."""
        ...

    def run(self, jobs: Sequence[Job], step: Step) -> Sequence[Output]:
        """One output per job, in order. A job's output does not depend on its neighbours."""
        ...
