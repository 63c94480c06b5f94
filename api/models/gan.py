"""What all generators with a mapping and a synthesis network have in common, as a ``Model``: a family adds its networks and its noise."""

from __future__ import annotations

import secrets
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from msgspec.structs import replace
from torch import Tensor

from api.errors import BadInput, ConfigError
from api.models.base import Array, Info, Step
from api.models.directions import Direction, edit
from api.models.jobs import Edit, Floats, Generate, Job, Noise, Output, Pixels, Project, Synthesize
from api.models.latents import SEEDS, check_edit, check_generate, check_project, check_synthesize, draw_latent, truncate
from api.models.means import MappingNetwork, Means, one_hot
from api.models.projection import Projector, settle


@dataclass(frozen=True)
class Draft:
    """What a picture is made from. ``styles`` are filled in later where there is a latent."""

    job: Generate | Synthesize
    styles: Floats
    latent: Floats | None = None
    label: int | None = None
    mean: Floats | None = None
    psi: float = 1.0
    cutoff: int | None = None

    @property
    def seed(self) -> int:
        return self.job.seed or 0

    @property
    def noise_seed(self) -> int | None:
        """Where its noise is drawn from, if it has random noise."""
        drawn = self.seed if self.job.noise_seed is None else self.job.noise_seed
        return drawn if self.job.noise == "random" else None

    def output(self, image: Pixels, labels: Sequence[str] | None) -> Output:
        label = labels[self.label] if labels is not None and self.label is not None else None
        return Output(image=image, seed=self.seed, label=label, latent=self.latent, styles=self.styles)


class Painter(Protocol):
    """A family's synthesis network: how pictures are made to be seen, and how to be brought closer to others."""

    def __call__(self, drafts: Sequence[Draft]) -> Pixels:
        """Drafts with their styles ↦ pictures (N, height, width, 3); a picture does not depend on the others."""
        ...

    def planes(self, noise: Noise, seed: int) -> list[Tensor] | None:
        """Each layer's noise, (1, 1, side, side), for ``paint``; ``None`` where there is none."""
        ...

    def paint(self, ws: Tensor, planes: Sequence[Tensor] | None) -> Tensor:
        """ws (N, levels, w_size) ↦ the same pictures as (N, 3, height, width), nominally in [0, 1], with gradients."""
        ...


class Gan:
    """``mapping`` and ``render`` of a family as a model that computes at most ``batch`` pictures at once on ``info.device``."""

    def __init__(
        self, info: Info, mapping: MappingNetwork, render: Painter, means: Means, batch: int, directions: Mapping[str, Direction]
    ) -> None:
        self.mapping, self.render, self.means, self.batch = mapping, render, means, batch
        self.directions = directions
        told = [direction.tell() for direction in directions.values()]
        self.info = replace(info, extra={**info.extra, "directions": told})
        self.projector = Projector(self.info, means, render, self.pictures, batch)

    def prepare(self, job: Job) -> Job:
        if isinstance(job, Edit):
            check_edit(self.info, job)
        elif isinstance(job, Generate):
            check_generate(self.info, job)
        elif isinstance(job, Synthesize):
            check_synthesize(self.info, job)
        elif isinstance(job, Project):
            check_project(self.info, job)
            job = settle(self.info, job)
        else:
            raise BadInput(f"model {self.info.id!r} cannot {type(job).__name__}; it takes {', '.join(self.info.kinds)}")
        return job if job.seed is not None else replace(job, seed=secrets.randbelow(SEEDS))

    def key(self, job: Job) -> Hashable:
        return id(job) if isinstance(job, Project) else self.info.id  # all others end in the same synthesis

    def run(self, jobs: Sequence[Job], step: Step) -> Sequence[Output]:
        if isinstance(jobs[0], Project):
            return [self.projector.run(job, step) for job in jobs if isinstance(job, Project)]
        return self.pictures(jobs)

    @torch.inference_mode()
    def pictures(self, jobs: Sequence[Job]) -> list[Output]:
        """Each as its job says, ``batch`` at a time."""
        return [output for i in range(0, len(jobs), self.batch) for output in self.make(jobs[i : i + self.batch])]

    def make(self, jobs: Sequence[Job]) -> list[Output]:
        """One batch, small enough for the network."""
        drafts = [self.draft(job) for job in jobs]
        self.fill([draft for draft in drafts if draft.latent is not None])
        for draft in drafts:
            if isinstance(draft.job, Edit):
                draft.styles[:] = edit(draft.styles, draft.job, self.directions)
        return [draft.output(image, self.info.labels) for draft, image in zip(drafts, self.render(drafts), strict=True)]

    def draft(self, job: Job) -> Draft:
        if isinstance(job, Synthesize):
            styles = np.array(job.styles, np.float32)
            styles[: job.cutoff] = truncate(styles[: job.cutoff], self.means.all, job.psi)
            return Draft(job, styles)
        assert isinstance(job, Generate)
        if isinstance(job, Edit) and job.styles is not None:
            return Draft(job, np.array(job.styles, np.float32))
        labels = self.info.labels or ()
        latent, drawn = draw_latent(job, self.info.z_size, len(labels))
        label = drawn if job.label is None else labels.index(job.label)
        mean = self.means.of(label, job.label is not None)
        return Draft(job, np.empty((self.info.levels, self.info.w_size), np.float32), latent, label, mean, job.psi, job.cutoff)

    def fill(self, drafts: Sequence[Draft]) -> None:
        """The styles of ``Generate``: latents and classes mapped together, truncated each by its own psi."""
        if not drafts:
            return
        z = torch.from_numpy(np.stack([draft.latent for draft in drafts if draft.latent is not None]))
        labels = [draft.label for draft in drafts if draft.label is not None]
        c = one_hot(labels, len(self.info.labels)).to(self.info.device) if self.info.labels else None
        w = self.mapping(z.to(self.info.device), c).cpu().numpy()
        for draft, row in zip(drafts, w, strict=True):
            draft.styles[:] = row
            if draft.mean is not None:
                draft.styles[: draft.cutoff] = truncate(row, draft.mean, draft.psi)


def parameter(name: str, array: Array | None, shape: tuple[int, ...]) -> Tensor:
    """A checkpoint's array as a float32 tensor of its own memory. Raises ``ConfigError`` if it is not as expected."""
    if array is None:
        raise ConfigError(f"parameter {name!r} is missing")
    if array.shape != shape or array.dtype.kind != "f":
        raise ConfigError(f"parameter {name!r} is {array.dtype} {array.shape}; floating-point {shape} is expected")
    if not np.isfinite(array).all():
        raise ConfigError(f"parameter {name!r} holds values that are not finite numbers")
    return torch.from_numpy(np.array(array, np.float32))
