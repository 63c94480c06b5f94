"""A picture's styles, found by optimisation: a long job, which gives way to others between its steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import numpy as np
import torch
from msgspec.structs import replace
from torch import Tensor

from api.models.base import Info, Step
from api.models.descent import Search, Space, as_target, distance, pyramid
from api.models.jobs import Generate, Job, Noise, Output, Pixels, Project, Synthesize
from api.models.means import Means

PER_START = 32  # random pictures for each start that is followed
MOST_STARTS, START_PIXELS = 8, 1 << 18  # so many starts unless their pictures have more pixels together
CHUNK_PIXELS = 1 << 20  # of pictures whose gradients are in memory at once
SEEDS = 1 << 32


class Paints(Protocol):
    """What is needed of a family's network; see ``gan.Painter``."""

    def planes(self, noise: Noise, seed: int) -> list[Tensor] | None: ...
    def paint(self, ws: Tensor, planes: Sequence[Tensor] | None) -> Tensor: ...


class Projector:
    """``pictures`` makes at most ``batch`` plain pictures at once as they are served; ``paint`` those with gradients."""

    def __init__(self, info: Info, means: Means, paint: Paints, pictures: Callable[[Sequence[Job]], list[Output]], batch: int) -> None:
        self.info, self.means, self.network, self.pictures, self.batch = info, means, paint, pictures, batch

    def run(self, job: Project, step: Step) -> Output:
        """The styles whose picture comes closest to the job's, and that picture; ``step`` is called between all steps."""
        target = as_target(job.image, self.info.width)
        candidates = list(self.candidates(job))
        batches = [candidates[i : i + self.batch] for i in range(0, len(candidates), self.batch)]
        total = len(batches) + job.steps
        seen: list[Output] = []
        for index, batch in enumerate(batches):
            step(index, total)
            seen += self.pictures(batch)
        step(len(batches), total)
        with torch.inference_mode(False), torch.enable_grad():
            search = self.search(job, target, seen)
            search.run(job.steps, job.regularisation, lambda done: step(len(batches) + done, total, lambda: [self.show(job, search).image]))
        made = self.show(job, search)
        quality = round(psnr(made.image, target), 2)
        return replace(made, label=job.label, extra={"psnr": quality, "steps": job.steps, "starts": job.starts, "noise": job.noise})

    def candidates(self, job: Project) -> Iterator[Job]:
        """The mean, and pictures of random latents."""
        styles = np.tile(self.mean(job), (self.info.levels, 1))
        yield Synthesize(model=job.model, seed=job.seed, styles=styles, noise=job.noise or "none")
        for i in range(1, PER_START * (job.starts or 1)):
            seed = ((job.seed or 0) + i) % SEEDS
            yield Generate(model=job.model, seed=seed, label=job.label, noise=job.noise or "none", noise_seed=job.seed)

    def search(self, job: Project, target: Tensor, seen: Sequence[Output]) -> Search:
        """Ready to go from the best of what was seen."""
        device = self.info.device
        w = torch.from_numpy(np.stack([output.styles[0] for output in seen if output.styles is not None]))
        images = torch.from_numpy(np.stack([output.image for output in seen])).permute(0, 3, 1, 2)
        goal = pyramid(target)
        distances = torch.cat([distance(part.float() / 255, goal) for part in images.split(self.batch)])
        mean = torch.from_numpy(np.array(self.mean(job)))
        sigma = float((w - mean).square().mean().sqrt())
        space = Space(mean.to(device), max(sigma, 1e-6), self.info.levels, job.space == "w")
        planes = self.network.planes(job.noise or "none", job.seed or 0)
        chunk = max(1, min(self.batch, CHUNK_PIXELS // (self.info.width * self.info.height)))
        search = Search(self.network.paint, target.to(device), space, planes, chunk, job.seed or 0)
        search.start(w[distances.argsort()[: job.starts]].to(device), job.fit_noise)
        return search

    def show(self, job: Project, search: Search) -> Output:
        """The picture of the best styles so far, as it is served."""
        styles = search.styles().cpu().numpy()
        return self.pictures([Synthesize(model=job.model, seed=job.seed, styles=styles, noise=job.noise or "none")])[0]

    def mean(self, job: Project) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        """w toward which regularisation pulls, (w_size,)."""
        labels = self.info.labels or ()
        return self.means.of(None if job.label is None else labels.index(job.label), job.label is not None)


def settle(info: Info, job: Project) -> Project:
    """The job with all that it left open."""
    starts = job.starts or max(1, min(MOST_STARTS, START_PIXELS // (info.width * info.height)))
    noise = job.noise or ("const" if "const" in info.noises else "none")
    return replace(job, starts=starts, noise=noise)


def psnr(image: Pixels, target: Tensor) -> float:
    """Of (H, W, 3) against (1, 3, H, W) in [0, 1], in decibels; 99 at most."""
    error = image / 255 - target[0].permute(1, 2, 0).numpy()
    return float(min(99.0, -10 * np.log10(max(1e-12, np.square(error).mean()))))
