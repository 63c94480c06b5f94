"""Mapping networks that compute w from known traits: each trait gets a few units of its own, wired to its latent coordinates alone.

The result is an ordinary Precure mapping network, most of whose weights are zero. Trained densely, the same network needs a hundred
times as long to reach a tenth of the precision.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import cos, pi, sqrt

import root  # noqa: F401
import torch
from frame import Frame
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from training import Average

from api.models.nets.precure import SLOPE, Linear, Mapping, normalise

SHIFT = 6.0  # added to all of w, so that the last leaky ReLU passes it unchanged


@dataclass(frozen=True)
class Block:
    """A trait: ``knobs`` are the latent coordinates that it reads, ``columns`` the features that it makes, ``units`` its width."""

    knobs: tuple[int, ...]
    columns: tuple[int, ...]
    units: int


class Fit(torch.nn.Module):
    """The hidden layers and a linear read-out of standardised features; masks keep the blocks apart."""

    def __init__(self, size: int, depth: int, blocks: Sequence[Block], spare: int) -> None:
        super().__init__()
        count = sum(len(block.columns) for block in blocks)
        masks = [torch.zeros(size, size) for _ in range(depth - 1)] + [torch.zeros(count, size)]
        start = spare
        for block in blocks:
            units = slice(start, start + block.units)
            start += block.units
            masks[0][units, list(block.knobs)] = 1
            for mask in masks[1:-1]:
                mask[units, units] = 1
            masks[-1][list(block.columns), units] = 1
        if start > size:
            raise ValueError(f"the blocks need {start} units and a layer has {size}")
        self.masks = masks
        self.weights = torch.nn.ParameterList(torch.randn(m.shape) * (2 / m.sum(1, keepdim=True).clamp(min=1)).sqrt() * m for m in masks)
        self.biases = torch.nn.ParameterList(torch.randn(len(m)) * 0.5 for m in masks)

    def forward(self, z: Tensor) -> Tensor:
        x = normalise(z)
        for weight, bias in list(zip(self.weights, self.biases, strict=True))[:-1]:
            x = F.leaky_relu(F.linear(x, weight, bias), SLOPE)
        return F.linear(x, self.weights[-1], self.biases[-1])

    def mask_gradients(self) -> None:
        for weight, mask in zip(self.weights, self.masks, strict=True):
            if weight.grad is not None:
                weight.grad.mul_(mask)


def train(fit: Fit, features: Callable[[Tensor], Tensor], frame: Frame, steps: int, seed: int) -> Iterator[float]:
    """Regression on ``features(z)``, standardised; yields each step's mean squared error."""
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.Adam(fit.parameters(), betas=(0.9, 0.99))
    average = Average(fit)
    size = fit.weights[0].shape[1]
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = 1e-2 * (1 + cos(pi * step / steps)) / 2 + 1e-6
        z = torch.randn(512, size, generator=generator)
        loss = F.mse_loss(fit(z), (features(z) - frame.mean) / frame.deviation)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        fit.mask_gradients()
        optimiser.step()
        average.update(fit)
        yield loss.item()
    fit.load_state_dict(average.values)


@torch.no_grad()
def install(fit: Fit, frame: Frame, mapping: Mapping) -> None:
    """Writes the fitted layers into ``mapping``, the frame into its last one; a class runs through all layers in a unit of its own."""
    size, categories = len(frame.axes[0]), len(frame.classes)
    weights = [weight.detach().clone() for weight in fit.weights]
    biases = [bias.detach().clone() for bias in fit.biases]
    if mapping.embedding is not None:
        fill(mapping.embedding, torch.eye(size, categories), torch.zeros(size))
        pass_on = torch.zeros(size, size)
        pass_on[range(categories), range(categories)] = 1
        weights[0] = torch.cat([weights[0], pass_on / sqrt(size)], dim=1)
        for i in range(1, len(weights) - 1):
            weights[i] += pass_on
        for bias in biases[:-1]:
            bias[:categories] = 0
    biases[-1] = frame.axes.T @ biases[-1] + SHIFT
    weights[-1] = frame.axes.T @ weights[-1]
    weights[-1][:, :categories] += frame.classes.T
    for layer, weight, bias in zip(mapping.layers, weights, biases, strict=True):
        assert isinstance(layer, Linear)
        fill(layer, weight, bias)


def fill(layer: Linear, weight: Tensor, bias: Tensor) -> None:
    layer.weight.copy_(weight / layer.scale)
    layer.bias.copy_(bias)
