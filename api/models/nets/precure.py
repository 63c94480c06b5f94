"""The generator of Precure StyleGAN ADA: StyleGAN2 with skip connections, bicubic upsampling and a gainless synthesis.

Karras et al., "Analyzing and Improving the Image Quality of StyleGAN" (2020) is the paper behind it; what differs from the paper is
told where it happens. N is the batch, z ~ N(0, I) has ``size`` elements, w as many, and there is one w per level: level l (from 0)
works at 4 · 2^l squared. Pictures are NCHW, RGB, nominally in [0, 1].
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own habit

CATMULL_ROM = (0.0, 0.5)
B_SPLINE = (1.0, 0.0)
SLOPE = 0.2
EPSILON = 1e-8
DENSE_UPSAMPLING = 64  # up to this side one dense matrix product is faster than eight shifted sums


class Linear(nn.Module):
    """x ↦ gain / √fan_in · W x + b: the learning rate is equalised by scaling at run time (Karras et al. 2018, section 4.1)."""

    def __init__(self, fan_in: int, fan_out: int, gain: float = sqrt(2), bias: float = 0.0) -> None:
        super().__init__()
        self.scale = gain / sqrt(fan_in)
        self.weight = nn.Parameter(torch.randn(fan_out, fan_in))
        self.bias = nn.Parameter(torch.full((fan_out,), bias))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.scale, self.bias)


class Mapping(nn.Module):
    """z (N, size) and class (N, categories) one-hot ↦ w (N, size)."""

    def __init__(self, size: int, depth: int, categories: int = 1) -> None:
        super().__init__()
        self.embedding = Linear(categories, size, gain=1) if categories > 1 else None
        width = size if self.embedding is None else size * 2
        self.layers = nn.ModuleList(Linear(width if i == 0 else size, size) for i in range(depth))

    def forward(self, z: Tensor, c: Tensor | None = None) -> Tensor:
        x = normalise(z)
        if self.embedding is not None:
            if c is None:
                raise ValueError("a conditional mapping needs classes")
            x = torch.cat([x, normalise(self.embedding(c))], dim=1)
        for layer in self.layers:
            x = F.leaky_relu(layer(x), SLOPE)
        return x


class ModulatedConv(nn.Module):
    """A k×k convolution whose weights are scaled per picture by a style, with edge padding and no weight gain.

    Instead of making a weight per picture, inputs are scaled by the style and outputs by the demodulation factor
    (section 2.2 of the paper: the two are the same function), so that one dense convolution serves the whole batch.
    """

    def __init__(self, size: int, fan_in: int, fan_out: int, kernel: int, demodulate: bool = True) -> None:
        super().__init__()
        self.affine = Linear(size, fan_in, gain=1, bias=1.0)
        self.weight = nn.Parameter(torch.randn(fan_out, fan_in, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(fan_out))
        self.demodulate = demodulate

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        s = self.affine(w)  # (N, in)
        pad = self.weight.shape[-1] // 2
        x = x * s[:, :, None, None]
        x = F.conv2d(F.pad(x, [pad] * 4, mode="replicate") if pad else x, self.weight)
        if self.demodulate:
            d = torch.rsqrt(s.square() @ self.weight.square().sum(dim=(2, 3)).T + EPSILON)  # (N, out)
            x = x * d[:, :, None, None]
        return x + self.bias[:, None, None]


class Layer(nn.Module):
    """3×3 modulated convolution, noise times a learned scalar, leaky ReLU."""

    def __init__(self, size: int, fan_in: int, fan_out: int) -> None:
        super().__init__()
        self.conv = ModulatedConv(size, fan_in, fan_out, 3)
        self.strength = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, w: Tensor, noise: Tensor | None) -> Tensor:
        x = self.conv(x, w)
        if noise is not None:
            x = x + self.strength * noise
        return F.leaky_relu(x, SLOPE)


class Level(nn.Module):
    """One resolution: the first has one layer, the others upsample before the first of two; each adds to the picture."""

    def __init__(self, size: int, fan_in: int, fan_out: int, side: int) -> None:
        super().__init__()
        first = side == 4
        self.layers = nn.ModuleList([Layer(size, fan_in, fan_out)] + ([] if first else [Layer(size, fan_out, fan_out)]))
        self.rgb = ModulatedConv(size, fan_out, 3, 1, demodulate=False)
        self.up = None if first else Upsampling(side // 2, CATMULL_ROM)
        self.up_rgb = None if first else Upsampling(side // 2, B_SPLINE)

    def forward(self, x: Tensor, rgb: Tensor | None, w: Tensor, noise: Sequence[Tensor | None]) -> tuple[Tensor, Tensor]:
        if self.up is not None:
            x = self.up(x)
        for layer, plane in zip(self.layers, noise, strict=True):
            x = layer(x, w, plane)
        y = self.rgb(x, w)
        return x, y if rgb is None or self.up_rgb is None else y + self.up_rgb(rgb)


class Synthesis(nn.Module):
    """ws (N, levels, size) and noise ↦ pictures (N, 3, 2^(levels+1), 2^(levels+1)).

    ``noise`` is one tensor per layer, broadcastable to (N, 1, side, side), ``None`` in place of a layer's noise or of all of it
    switches it off. There are 2 · levels - 1 layers; ``noise_sides`` tells their sides.
    """

    def __init__(self, size: int, levels: int, first_channels: int, last_channels: int) -> None:
        super().__init__()
        widths = channels(levels, first_channels, last_channels)
        self.const = nn.Parameter(torch.randn(first_channels, 4, 4))
        self.levels = nn.ModuleList(Level(size, widths[i], widths[i + 1], 4 << i) for i in range(levels))
        self.noise_sides = noise_sides(levels)

    def forward(self, ws: Tensor, noise: Sequence[Tensor | None] | None = None) -> Tensor:
        planes = list(noise) if noise is not None else [None] * len(self.noise_sides)
        x, rgb = self.levels[0](self.const.expand(ws.shape[0], -1, -1, -1), None, ws[:, 0], planes[:1])
        for i, level in enumerate(self.levels[1:], start=1):
            x, rgb = level(x, rgb, ws[:, i], planes[2 * i - 1 : 2 * i + 1])
        return rgb


class Generator(nn.Module):
    """The whole network; the arguments are the attributes of the HDF5 checkpoints. ``categories`` of 0 or 1: unconditional."""

    def __init__(
        self,
        size: int = 512,
        depth: int = 8,
        levels: int = 7,
        first_channels: int = 512,
        last_channels: int = 64,
        categories: int = 1,
    ) -> None:
        super().__init__()
        self.size, self.levels, self.categories = size, levels, categories
        self.resolution = 2 << levels
        self.mapping = Mapping(size, depth, categories)
        self.synthesis = Synthesis(size, levels, first_channels, last_channels)

    def forward(self, z: Tensor, c: Tensor | None = None, noise: Sequence[Tensor | None] | None = None) -> Tensor:
        """z (N, size), c (N, categories) one-hot ↦ pictures (N, 3, resolution, resolution)."""
        w = self.mapping(z, c)
        return self.synthesis(w[:, None].expand(-1, self.levels, -1), noise)


class Upsampling(nn.Module):
    """Doubles both sides of (N, C, side, side) by a cubic kernel of (B, C) (Mitchell and Netravali 1988), borders mirrored."""

    def __init__(self, side: int, kernel: tuple[float, float]) -> None:
        super().__init__()
        # The sample points lie a quarter left (even outputs) and right (odd ones) of the inputs; the two filters mirror each other.
        self.taps = [cubic(distance, *kernel) for distance in (1.75, 0.75, 0.25, 1.25)]
        matrix = upsampling_matrix(side, self.taps) if side <= DENSE_UPSAMPLING else None
        self.register_buffer("matrix", matrix, persistent=False)
        self.matrix: Tensor | None

    def forward(self, x: Tensor) -> Tensor:
        if self.matrix is not None:
            return self.matrix @ (x @ self.matrix.T)
        return double(double(x, 3, self.taps), 2, self.taps)


def double(x: Tensor, dim: int, taps: Sequence[float]) -> Tensor:
    """Upsampling along one axis as sums of shifted copies; memory grows with the sides, not with their product."""
    side = x.shape[dim]
    start, end = x.narrow(dim, 0, 2).flip(dim), x.narrow(dim, side - 2, 2).flip(dim)
    x = torch.cat([start, x, end], dim)
    even = sum(x.narrow(dim, i, side) * tap for i, tap in enumerate(taps))
    odd = sum(x.narrow(dim, i + 1, side) * tap for i, tap in enumerate(reversed(taps)))
    return torch.stack([even, odd], dim + 1).flatten(dim, dim + 1)  # type: ignore[list-item]


def upsampling_matrix(side: int, taps: Sequence[float]) -> Tensor:
    """(2 · side, side): the same as ``double``, as a matrix."""
    matrix = torch.zeros(2 * side, side)
    for i in range(side):
        for k, tap in enumerate(taps):
            matrix[2 * i, mirror(i - 2 + k, side)] += tap
            matrix[2 * i + 1, mirror(i + 2 - k, side)] += tap
    return matrix


def mirror(i: int, side: int) -> int:
    """An index outside 0 … side-1 reflected at the border, the border's own element repeated."""
    return -1 - i if i < 0 else 2 * side - 1 - i if i >= side else i


def cubic(x: float, b: float, c: float) -> float:
    """The piecewise cubic of Mitchell and Netravali (1988), equation 8, at distance x."""
    if x < 1:
        return ((12 - 9 * b - 6 * c) * x**3 + (-18 + 12 * b + 6 * c) * x**2 + (6 - 2 * b)) / 6
    if x < 2:
        return ((-b - 6 * c) * x**3 + (6 * b + 30 * c) * x**2 + (-12 * b - 48 * c) * x + (8 * b + 24 * c)) / 6
    return 0.0


def normalise(x: Tensor) -> Tensor:
    """Each row divided by its root mean square."""
    return x * torch.rsqrt(x.square().mean(dim=1, keepdim=True) + EPSILON)


def channels(levels: int, first: int, last: int) -> list[int]:
    """Channels before the first level and after each one: halved towards ``last`` at the end, never above ``first``."""
    return [first, *(min(first, last << (levels - i)) for i in range(1, levels)), last]


def noise_sides(levels: int) -> list[int]:
    """The side of each layer's noise, in the order in which the layers run."""
    return [4] + [4 << i for i in range(1, levels) for _ in range(2)]
