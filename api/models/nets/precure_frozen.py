"""The Precure generator with its constants folded, for inference: the same function as ``precure.Generator``, arranged for speed.

Activations lie as (N, H, W, C). Three identities carry it, all exact but for the order of summation:

- leaky ReLU commutes with positive factors, so the demodulation d of one convolution and the style s of the next become one factor:
  lrelu(d · (W * x) + b + noise) = d · lrelu(W * x + (b + noise) / d);
- the first convolution's input is a constant, so its output is linear in the style: one matrix;
- upsampling by a symmetric kernel with mirrored borders makes a signal whose border repeats, which is the padding that the next convolution
  wants, so both are one step.

Pictures do not depend on their neighbours: each product below runs either per picture, or on a number of rows that does not vary with
the batch, or in shapes whose kernels were seen to agree (``ROWS``, ``SMALL``; tests/test_precure.py compares bytes).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - torch's own habit

from api.models.nets.precure import (
    B_SPLINE,
    CATMULL_ROM,
    EPSILON,
    SLOPE,
    Generator,
    Layer,
    Level,
    Linear,
    ModulatedConv,
    cubic,
    noise_sides,
    normalise,
    upsampling_matrix,
)
from api.models.nets.rows import SMALL

ROWS = 16  # linear layers always get this many rows: fewer or more would run other kernels
DENSE = 16  # up to this side upsampling is a matrix product, above a transposed convolution


class Frozen:
    """``mapping`` and ``synthesis`` for at most ``ROWS`` pictures. ``dtype`` is that of the convolutions; the rest is float32."""

    def __init__(self, generator: Generator, device: str = "cpu", dtype: torch.dtype = torch.float32) -> None:
        generator = generator.to(device=device, dtype=torch.float32).eval().requires_grad_(False)
        embedding = generator.mapping.embedding
        self.embedding = None if embedding is None else Affine([embedding])
        self.layers = [Affine([cast(Linear, layer)]) for layer in generator.mapping.layers]
        first, *rest = (cast(Level, level) for level in generator.synthesis.levels)
        # Upsampling leaves constants alone: the biases of all levels can be added at the first.
        bias = torch.stack([level.rgb.bias for level in (first, *rest)]).sum(dim=0)[:, None, None]
        self.first = FirstLevel(first, generator.synthesis.const, bias, dtype)
        self.levels = [NextLevel(level, 4 << i, dtype) for i, level in enumerate(rest)]
        self.alone = [all(level.is_large for level in self.levels[i:]) for i in range(len(self.levels))]  # from there on
        self.areas, self.dtype = [side * side for side in noise_sides(generator.levels)], dtype

    def mapping(self, z: Tensor, c: Tensor | None) -> Tensor:
        """z (N, size), c (N, categories) one-hot ↦ w (N, size)."""
        count = z.shape[0]
        x = normalise(to_rows(z))
        if self.embedding is not None and c is not None:
            x = torch.cat([x, normalise(self.embedding(to_rows(c)))], dim=1)
        for layer in self.layers:
            x = F.leaky_relu_(layer(x), SLOPE)
        return x[:count]

    def synthesis(self, ws: Tensor, noise: Tensor | None) -> Tensor:
        """ws (N, levels, size), noise of all layers one after the other (N, Σ side²) ↦ pictures (N, 3, side, side), not clipped."""
        count, w = ws.shape[0], to_rows(ws)
        pairs = max(count, 2) if w.device.type == "cpu" else count
        planes = self.planes(noise, pairs)
        x, gain, rgb = self.first(w[:, 0], pairs, planes[0])
        for i, level in enumerate(self.levels):
            if x.shape[0] > count and self.alone[i]:
                x, gain, rgb, planes = x[:count], gain[:count], rgb[:count], self.planes(noise, count)
            x, gain, rgb = level(x, gain, rgb, w[:, i + 1], planes[2 * i + 1], planes[2 * i + 2])
        return rgb[:count]

    def planes(self, noise: Tensor | None, rows: int) -> Sequence[Tensor | None]:
        """The noise of each layer, (rows, side², 1)."""
        if noise is None:
            return [None] * len(self.areas)
        noise = noise if noise.shape[0] == rows else noise.expand(rows, -1)
        return noise.to(self.dtype).unsqueeze(2).split(self.areas, dim=1)


class Affine:
    """Several linear layers of one input as one product, their learning-rate factors folded in."""

    def __init__(self, layers: Sequence[Linear]) -> None:
        self.weight = torch.cat([layer.weight * layer.scale for layer in layers]).T.contiguous()  # (in, out)
        self.bias = torch.cat([layer.bias for layer in layers])

    def __call__(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x, self.weight)


class Styling:
    """What a level's w makes of its layers: styles, demodulation, and bias and noise strength as the frozen layers want them."""

    def __init__(self, level: Level, dtype: torch.dtype) -> None:
        layers = [cast(Layer, layer) for layer in level.layers]
        self.dtype = dtype
        self.affine = Affine([*(layer.conv.affine for layer in layers), level.rgb.affine])
        self.weights, factors = zip(*(unit_weight(layer.conv.weight, dtype) for layer in layers), strict=True)
        scale = torch.cat(
            [layer.conv.bias.new_full(layer.conv.bias.shape, factor**-2) for layer, factor in zip(layers, factors, strict=True)]
        )
        self.squares = torch.block_diag(*(layer.conv.weight.square().sum(dim=(2, 3)).T for layer in layers)) * scale  # (ΣI, ΣO)
        self.epsilon = EPSILON * scale
        strengths = torch.cat([layer.strength.expand_as(layer.conv.bias) for layer in layers])
        self.terms = torch.stack([strengths, torch.cat([layer.conv.bias for layer in layers])])  # (2, ΣO)
        self.ins = [layer.conv.weight.shape[1] for layer in layers]
        self.outs = [layer.conv.weight.shape[0] for layer in layers]

    def __call__(self, w: Tensor, count: int) -> tuple[Sequence[Tensor], Sequence[Tensor], Sequence[Tensor]]:
        """w (ROWS, size) ↦ of the first ``count``: styles (N, I) per layer and RGB, demodulations (N, O) and terms (N, 2, O) per layer."""
        s = self.affine(w)
        d = torch.addmm(self.epsilon, s[:, : sum(self.ins)].square(), self.squares).rsqrt_()[:count]
        terms = (self.terms / d[:, None]).to(self.dtype)
        return s[:count].split([*self.ins, self.outs[-1]], dim=1), d.split(self.outs, dim=1), terms.split(self.outs, dim=2)


def unit_weight(weight: Tensor, dtype: torch.dtype) -> tuple[Tensor, float]:
    """The weight such that outputs have about the inputs' scale, which keeps half precision far from its limits, and the factor taken out.

    The demodulation undoes the factor.
    """
    factor = float(weight.square().mean().sqrt().clamp(min=1e-30)) * weight[0].numel() ** 0.5
    return (weight / factor).to(dtype).contiguous(memory_format=torch.channels_last), factor


def activate(y: Tensor, terms: Tensor, noise: Tensor | None) -> Tensor:
    """lrelu(y + (b + strength · noise) / d) in place; y is (N, H, W, O), terms (N, 2, O) are strength / d and b / d."""
    flat = y.view(y.shape[0], -1, y.shape[3])
    if noise is not None:
        flat.addcmul_(noise, terms[:, :1])
    F.leaky_relu_(flat.add_(terms[:, 1:]), SLOPE)
    return y


class ToRgb:
    """The 1×1 convolution to RGB without its bias, as one small product per picture with style and gain in the weights."""

    def __init__(self, conv: ModulatedConv, dtype: torch.dtype) -> None:
        self.weight, self.dtype = conv.weight[:, :, 0, 0].T.contiguous(), dtype  # (I, 3)

    def __call__(self, x: Tensor, gain: Tensor) -> Tensor:
        """x (N, H, W, I), gain (N, I) ↦ (N, 3, H, W) in float32, lying as (N, H, W, 3)."""
        count, height, width, channels = x.shape
        weight = (gain[:, :, None] * self.weight).to(self.dtype)
        return torch.bmm(x.view(count, -1, channels), weight).float().view(count, height, width, 3).permute(0, 3, 1, 2)


class FirstLevel:
    """4×4: the convolution of the learned constant is linear in its style, hence a matrix (I, 16 · O)."""

    def __init__(self, level: Level, const: Tensor, bias: Tensor, dtype: torch.dtype) -> None:
        self.styling, self.rgb, self.bias, self.dtype = Styling(level, dtype), ToRgb(level.rgb, dtype), bias, dtype
        weight = self.styling.weights[0].float().flatten(2)
        patches = F.unfold(F.pad(const[None], [1] * 4, mode="replicate"), 3)[0].view(len(const), 9, 16)  # (I, 9, 16)
        self.matrix = torch.einsum("ikp,oik->ipo", patches, weight).reshape(len(const), -1).contiguous()

    def __call__(self, w: Tensor, count: int, noise: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        (s, s_rgb), (d,), (terms,) = self.styling(w, ROWS)
        y = (s @ self.matrix)[:count].view(count, 4, 4, -1).to(self.dtype)
        x = activate(y, terms[:count], noise)
        return x, d[:count], self.rgb(x, (d * s_rgb)[:count]) + self.bias


class NextLevel:
    """One doubling: two convolutions and the way to RGB. ``side`` is that of the input."""

    def __init__(self, level: Level, side: int, dtype: torch.dtype) -> None:
        self.side, self.styling, self.rgb, self.dtype = side, Styling(level, dtype), ToRgb(level.rgb, dtype), dtype
        # Torch convolves one picture by the code that it has for several only if the picture is large enough.
        least = (2 * side + 2) ** 2 if side <= DENSE else (side + 4) ** 2
        self.is_large = all(inputs * least > SMALL for inputs in self.styling.ins)
        device = level.rgb.weight.device
        self.up = Doubling(side, CATMULL_ROM, device, dtype, border=True)
        self.up_rgb = Doubling(side, B_SPLINE, device, torch.float32, border=False)

    def __call__(
        self, x: Tensor, gain: Tensor, rgb: Tensor, w: Tensor, noise1: Tensor | None, noise2: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        (s1, s2, s3), (d1, d2), (terms1, terms2) = self.styling(w, x.shape[0])
        weight1, weight2 = self.styling.weights
        x = activate(convolve(self.up(self.scaled(x, gain * s1)), weight1), terms1, noise1)
        x = activate(convolve(bordered(self.scaled(x, d1 * s2)), weight2), terms2, noise2)
        return x, d2, self.up_rgb.planes(rgb).add_(self.rgb(x, d2 * s3))

    def scaled(self, x: Tensor, gain: Tensor) -> Tensor:
        """x (N, H, W, C) times gain (N, C), in place."""
        return x.mul_(gain[:, None, None].to(self.dtype))


class Doubling:
    """Upsampling by a cubic kernel; with ``border`` the result is padded by one on all sides by repeating its border."""

    def __init__(self, side: int, kernel: tuple[float, float], device: torch.device, dtype: torch.dtype, border: bool) -> None:
        taps = [cubic(distance, *kernel) for distance in (1.75, 0.75, 0.25, 1.25)]
        self.side, self.border = side, border
        matrix = upsampling_matrix(side, taps)
        if border:
            matrix = torch.cat([matrix[:1], matrix, matrix[-1:]])
        self.matrix = matrix.to(device, dtype)  # (2 · side [+ 2], side)
        line = torch.tensor([taps[0], taps[3], taps[1], taps[2], taps[2], taps[1], taps[3], taps[0]])
        self.kernel = torch.outer(line, line).to(device, dtype)[None, None]

    def __call__(self, x: Tensor) -> Tensor:
        """(N, H, W, C) ↦ (N, 2H [+ 2], 2W [+ 2], C)"""
        if self.side > DENSE:
            kernel = self.kernel.expand(x.shape[-1], -1, -1, -1)
            y = F.conv_transpose2d(mirrored(x).permute(0, 3, 1, 2), kernel, stride=2, padding=6, groups=x.shape[-1])
            return y.permute(0, 2, 3, 1)
        count, height, width, channels = x.shape
        side = self.matrix.shape[0]
        y = torch.bmm(self.matrix.expand(count * height, -1, -1), x.view(-1, width, channels)).view(count, height, side * channels)
        return torch.bmm(self.matrix.expand(count, -1, -1), y).view(count, side, side, channels)

    def planes(self, x: Tensor) -> Tensor:
        """(N, C, H, W) ↦ (N, C, 2H, 2W), for few channels."""
        count, channels, side, _ = x.shape
        matrix = self.matrix.expand(count * channels, -1, -1)
        y = torch.bmm(torch.bmm(matrix, x.reshape(-1, side, side)), matrix.transpose(1, 2))
        return y.view(count, channels, 2 * side, 2 * side)


def convolve(x: Tensor, weight: Tensor) -> Tensor:
    return F.conv2d(x.permute(0, 3, 1, 2), weight).permute(0, 2, 3, 1)


def bordered(x: Tensor) -> Tensor:
    return F.pad(x.permute(0, 3, 1, 2), [1] * 4, mode="replicate").permute(0, 2, 3, 1)


def mirrored(x: Tensor) -> Tensor:
    """(N, H, W, C) with two more on each side, mirrored."""
    count, height, width, channels = x.shape
    y = x.new_empty(count, height + 4, width + 4, channels)
    y[:, 2:-2, 2:-2] = x
    y[:, :2, 2:-2], y[:, -2:, 2:-2] = x[:, :2].flip(1), x[:, -2:].flip(1)
    y[:, :, :2], y[:, :, -2:] = y[:, :, 2:4].flip(2), y[:, :, -4:-2].flip(2)
    return y


def to_rows(x: Tensor) -> Tensor:
    """Filled up to ``ROWS`` rows with copies of the first."""
    missing = ROWS - x.shape[0]
    return x if missing <= 0 else torch.cat([x, x[:1].expand(missing, *x.shape[1:])])
