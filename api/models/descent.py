"""Projection: the styles under which a generator's picture comes closest to a given one.

Karras et al., "Analyzing and Improving the Image Quality of StyleGAN" (2020), section 5 and appendix D: Adam on w, from typical w, with
noise on w that is ramped down, a learning rate that is ramped up and down, and noise maps that are fitted along and kept white. Three
things differ. Several starts are followed side by side for a while, and the best one to the end. Steps are taken in units of w's standard
deviation, since networks differ in the scale of w. And the distance has no weights: with x_s, y_s the pictures after s halvings by 2×2
means, S scales down to 8 pixels, and ∂ the differences of neighbours along both axes,

    d(x, y) = 1/S · Σ_s mean|x_s − y_s| + mean|∂_h (x_s − y_s)| + mean|∂_v (x_s − y_s)|,

to which ``regularisation`` times the mean of ((w − w̄) / σ)² is added. Pictures lie in [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import cos, pi

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - torch's own habit

from api.models.jobs import Pixels
from api.models.pictures import middle_square, resize

RATE = 0.1  # of w, in σ a step, and of noise maps
WARM, COOL = 0.05, 0.25  # parts of the way over which the learning rate grows and falls
SHAKE, SHAKEN = 0.05, 0.75  # σ of the noise on w at the start, and the part of the way after which there is none
SEVERAL = 0.25  # part of the way that all starts go
LEAST = 8  # pixels of the smallest scale, of distances and of noise maps
WHITENESS = 1e5  # weight of the noise maps' correlations (appendix D)

Paint = Callable[[Tensor, Sequence[Tensor] | None], Tensor]
"""ws (N, levels, w_size), noise (N, 1, side, side) a layer ↦ pictures (N, 3, H, W), nominally in [0, 1], with gradients."""


@dataclass(frozen=True)
class Space:
    """Where styles are sought: w̄ + σ · x with x (N, levels, w_size), or (N, 1, w_size) where all levels share one w."""

    mean: Tensor  # (w_size,)
    sigma: float
    levels: int
    shared: bool

    def enter(self, w: Tensor) -> Tensor:
        """w (N, w_size) ↦ x"""
        return ((w - self.mean) / self.sigma)[:, None].repeat(1, 1 if self.shared else self.levels, 1)

    def leave(self, x: Tensor) -> Tensor:
        """x ↦ ws (N, levels, w_size)"""
        return (self.mean + self.sigma * x).expand(-1, self.levels, -1)


class Search:
    """The optimisation. ``chunk`` pictures at a time have their gradients in memory; ``planes`` are fitted along if ``fit_noise``."""

    def __init__(self, paint: Paint, target: Tensor, space: Space, planes: Sequence[Tensor] | None, chunk: int, seed: int) -> None:
        self.paint, self.space, self.chunk = paint, space, chunk
        self.target = pyramid(target)
        self.planes = planes
        self.random = torch.Generator().manual_seed(seed)
        self.x = target.new_empty(0)
        self.maps: list[Tensor] = []

    def start(self, w: Tensor, fit_noise: bool) -> None:
        """From w (N, w_size)."""
        self.x = self.space.enter(w).requires_grad_()
        if fit_noise and self.planes is not None:
            self.maps = [plane.repeat(len(w), 1, 1, 1).requires_grad_() for plane in self.planes]
        self.optimizer = torch.optim.Adam([self.x, *self.maps], lr=RATE)

    def run(self, steps: int, regularisation: float, tell: Callable[[int], None]) -> Tensor:
        """ws (levels, w_size) after so many steps; ``tell`` is called with the number of each that is done."""
        for index in range(steps):
            if index == int(steps * SEVERAL) and len(self.x) > 1:
                self.keep(int(self.distances().argmin()))
            self.step(index / steps, (index + 1) / steps, regularisation)
            tell(index + 1)
        return self.styles()

    def step(self, done: float, after: float, regularisation: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = RATE * min(1.0, after / WARM) * (0.5 - 0.5 * cos(pi * min(1.0, (1 - done) / COOL)))
        shake = SHAKE * max(0.0, 1 - done / SHAKEN) ** 2
        noise = torch.randn(self.x.shape, generator=self.random).to(self.x.device) * shake
        self.optimizer.zero_grad()
        for rows in self.parts():
            x = self.x[rows]
            distances = distance(self.paint(self.space.leave(x + noise[rows]), self.noise(rows)), self.target)
            loss = distances.sum() + regularisation * x.square().mean(dim=(1, 2)).sum()
            if self.maps:
                loss = loss + WHITENESS * sum(correlation(plane[rows]) for plane in self.maps)
            loss.backward()
        self.optimizer.step()
        self.normalise()

    @torch.no_grad()
    def normalise(self) -> None:
        """Noise maps stay of zero mean and unit variance."""
        for plane in self.maps:
            plane -= plane.mean(dim=(2, 3), keepdim=True)
            plane *= plane.square().mean(dim=(2, 3), keepdim=True).clamp(min=1e-12).rsqrt()

    @torch.no_grad()
    def distances(self) -> Tensor:
        return torch.cat([distance(self.paint(self.space.leave(self.x[rows]), self.noise(rows)), self.target) for rows in self.parts()])

    def keep(self, row: int) -> None:
        """Goes on with one start alone."""
        self.x = self.x.detach()[row : row + 1].clone().requires_grad_()
        self.maps = [plane.detach()[row : row + 1].clone().requires_grad_() for plane in self.maps]
        self.optimizer = torch.optim.Adam([self.x, *self.maps], lr=RATE)

    def styles(self) -> Tensor:
        """(levels, w_size): of the first start, which is the best one's as far as is known."""
        return self.space.leave(self.x.detach()[:1])[0].contiguous()

    def parts(self) -> list[slice]:
        return [slice(i, min(i + self.chunk, len(self.x))) for i in range(0, len(self.x), self.chunk)]

    def noise(self, rows: slice) -> Sequence[Tensor] | None:
        if self.maps:
            return [plane[rows] for plane in self.maps]
        count = rows.stop - rows.start
        return None if self.planes is None else [plane.expand(count, -1, -1, -1) for plane in self.planes]


def pyramid(x: Tensor) -> list[Tensor]:
    """x (N, C, H, W) and its halvings down to ``LEAST`` pixels."""
    scales = [x]
    while min(scales[-1].shape[2:]) >= 2 * LEAST:
        scales.append(F.avg_pool2d(scales[-1], 2))
    return scales


def distance(x: Tensor, target: Sequence[Tensor]) -> Tensor:
    """d of x (N, C, H, W) to the one picture whose pyramid ``target`` is, (N,)."""
    total = x.new_zeros(len(x))
    for scale, goal in zip(pyramid(x), target, strict=True):
        error = scale - goal
        total = total + error.abs().mean(dim=(1, 2, 3))
        for axis in (2, 3):
            total = total + error.diff(dim=axis).abs().mean(dim=(1, 2, 3))
    return total / len(target)


def correlation(plane: Tensor) -> Tensor:
    """How far noise maps (N, 1, side, side) are from white: squared correlations of neighbours on all scales (appendix D)."""
    total = plane.new_zeros(())
    while True:
        for axis in (2, 3):
            total = total + (plane * plane.roll(1, dims=axis)).mean(dim=(1, 2, 3)).square().sum()
        if plane.shape[2] <= LEAST:
            return total
        plane = F.avg_pool2d(plane, 2) * 2  # the mean of four has half the deviation


def as_target(picture: Pixels, side: int) -> Tensor:
    """uint8 (H, W, 3) ↦ its middle square as (1, 3, side, side) in [0, 1]."""
    square = resize(middle_square(picture), side, side)
    return torch.from_numpy(np.array(square)).permute(2, 0, 1)[None].float() / 255
