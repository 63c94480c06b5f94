"""Reads a face's attributes back from its picture: a small convolutional network trained on drawn faces. It judges generators."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from math import cos, pi
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from people import Face, features
from portrait import FEATURES, INDEX, SHAPE, draw
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

WIDTHS = (3, 24, 48, 64, 96)
HIDDEN = [INDEX["intensity"]]  # cannot be seen apart from the mood


class Recogniser(nn.Module):
    """Pictures (N, 3, 64, 64) in [0, 1] ↦ features (N, len(FEATURES)) as seen: the mood as far as it shows, intensity always 1."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in pairwise(WIDTHS))
        self.dense = nn.Linear(WIDTHS[-1] * 16, 128)
        self.out = nn.Linear(128, len(FEATURES))

    def forward(self, x: Tensor) -> Tensor:
        x = x * 2 - 1
        for layer in self.layers:
            x = F.leaky_relu(layer(x), 0.1)
        x = F.leaky_relu(self.dense(x.flatten(1)), 0.1)
        x = self.out(x)
        return torch.cat([x[:, : HIDDEN[0]], torch.ones_like(x[:, :1]), x[:, HIDDEN[0] + 1 :]], dim=1)


def seen(rows: Tensor) -> Tensor:
    """Features as they can be seen: clipped, the mood scaled by its intensity, the shape of glasses only where there are some."""
    rows = rows.clone()
    x, y = rows[:, INDEX["valence"]], rows[:, INDEX["arousal"]]
    scale = rows[:, INDEX["intensity"]].clamp(0, 1) / (x.square() + y.square()).clamp(min=1).sqrt()
    rows[:, INDEX["valence"]], rows[:, INDEX["arousal"]], rows[:, INDEX["intensity"]] = x * scale, y * scale, 1
    for name in SHAPE:
        rows[:, INDEX[name]] = rows[:, INDEX[name]].clamp(-1 if name in ("turn", "tilt", "parting") else 0, 1)
    square = INDEX["square"]
    rows[:, square] = torch.where(rows[:, INDEX["glasses"]] > 0.4, rows[:, square], 0.5)
    return rows


def train(recogniser: Recogniser, steps: int, seed: int, compiled: bool = False) -> Iterator[float]:
    """On faces of all moods, blurred and noisy to a degree, so that a generator's imperfections do not confuse it; yields the losses."""
    paint = torch.compile(draw, dynamic=False) if compiled else draw
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.Adam(recogniser.parameters())
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = 2e-3 * (1 + cos(pi * step / steps)) / 2 + 1e-6
        rows = features(torch.randn(32, 128, generator=generator))
        moods = slice(INDEX["valence"], INDEX["arousal"] + 1)
        rows[:16, moods] += torch.randn(16, 2, generator=generator) * 1.5
        images = paint(rows)
        images = torch.lerp(images, F.avg_pool2d(images, 3, 1, 1), torch.rand(32, 1, 1, 1, generator=generator) * 0.7)
        images = images + torch.randn(images.shape, generator=generator) * 0.03 * torch.rand(32, 1, 1, 1, generator=generator)
        loss = (recogniser(images) - seen(rows)).abs().mean()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        yield loss.item()


@torch.no_grad()
def recognise(recogniser: Recogniser, images: NDArray[np.uint8]) -> list[Face]:
    """Pictures (N, 64, 64, 3) ↦ the faces they show."""
    x = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 255
    return [Face.of(row) for row in recogniser(x).numpy()]


def save(recogniser: Recogniser, path: Path) -> None:
    np.savez_compressed(path, allow_pickle=False, **{name: t.numpy().astype(np.float16) for name, t in recogniser.state_dict().items()})


def load(path: Path) -> Recogniser:
    recogniser = Recogniser()
    with np.load(path, allow_pickle=False) as arrays:
        recogniser.load_state_dict({name: torch.from_numpy(arrays[name].astype(np.float32)) for name in arrays.files})
    return recogniser.eval()
