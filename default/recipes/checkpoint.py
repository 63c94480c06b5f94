"""From trained parts to the file that the server reads."""

from __future__ import annotations

from pathlib import Path

import root  # noqa: F401
import torch
from mapping import SHIFT
from torch import Tensor

from api.models.base import Checkpoint, Description
from api.models.formats import safetensors
from api.models.nets.precure import Generator, Layer, ModulatedConv, Synthesis

GRAIN = 1 / 255  # how much layer noise changes a pixel, root mean square: a breath of texture


@torch.no_grad()
def finish(generator: Generator, synthesis: dict[str, Tensor]) -> None:
    """Takes over the averaged synthesis, lets its styles expect the mapping's shift, and sets the noise strengths."""
    generator.synthesis.load_state_dict(synthesis, strict=False)
    for module in generator.synthesis.modules():
        if isinstance(module, ModulatedConv):
            module.affine.bias.sub_(module.affine.weight.sum(1) * module.affine.scale * SHIFT)
    set_noise(generator.synthesis, sample_w(generator, 32))


def set_noise(synthesis: Synthesis, w: Tensor) -> None:
    """Strengths that let each layer's noise add an equal share of ``GRAIN``."""
    ws = w[:, None].expand(-1, len(synthesis.levels), -1)
    quiet = synthesis(ws)
    layers = [module for module in synthesis.modules() if isinstance(module, Layer)]
    draws = torch.Generator().manual_seed(0)
    for i, (layer, side) in enumerate(zip(layers, synthesis.noise_sides, strict=True)):
        noise: list[Tensor | None] = [None] * len(layers)
        noise[i] = torch.randn(len(w), 1, side, side, generator=draws)
        layer.strength.fill_(0.01)
        change = float((synthesis(ws, noise) - quiet).square().mean().sqrt())
        layer.strength.fill_(0.01 * GRAIN / len(layers) ** 0.5 / max(change, 1e-6))


@torch.no_grad()
def sample_w(generator: Generator, count: int, label: int | None = None, seed: int = 1) -> Tensor:
    """(count, size) from the mapping network, of one class or of all in turn."""
    z = torch.randn(count, generator.size, generator=torch.Generator().manual_seed(seed))
    classes = None
    if generator.categories > 1:
        chosen = torch.arange(count) % generator.categories if label is None else torch.full((count,), label)
        classes = torch.eye(generator.categories)[chosen]
    w: Tensor = generator.mapping(z, classes)
    return w


def write(path: Path, generator: Generator, arguments: dict[str, int], labels: tuple[str, ...] | None, samples: int = 20_000) -> None:
    """The checkpoint, with the mean w of all and of each class."""
    tensors = dict(generator.state_dict())
    if labels is None:
        tensors["mean_w"] = sample_w(generator, samples).mean(0)
    else:
        tensors["class_mean_w"] = torch.stack([sample_w(generator, samples // 4, i).mean(0) for i in range(len(labels))])
        tensors["mean_w"] = tensors["class_mean_w"].mean(0)
    description = Description(format="safetensors", family="precure", arguments=arguments, labels=labels)
    path.parent.mkdir(parents=True, exist_ok=True)
    safetensors.write(path, Checkpoint(description=description, tensors={name: t.detach().numpy() for name, t in tensors.items()}))
