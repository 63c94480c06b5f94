"""Precure StyleGAN ADA: pictures from latents or styles, with or without classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from api.conf import ModelConf
from api.errors import ConfigError
from api.models.base import Array, Checkpoint, Info, Model, Place
from api.models.directions import find_directions
from api.models.formats.hdf5 import BOUNDS, layout
from api.models.gan import Draft, Gan, parameter
from api.models.jobs import Edit, Generate, Noise, Pixels, Project, Synthesize
from api.models.latents import draw_noise
from api.models.means import Means, compute_means, sample_styles
from api.models.nets.precure import Generator, Layer, noise_sides
from api.models.nets.precure_frozen import ROWS, Frozen

MEANS = ("mean_w", "class_mean_w")  # what a checkpoint may hold beside the network, to spare its computing at load
CACHE = 4 << 20  # bytes of one activation that a batch may fill on a CPU; beyond, more pictures at once are slower


def load(checkpoint: Checkpoint, conf: ModelConf, place: Place) -> Model:
    """Raises ``ConfigError`` if the checkpoint's arrays are not those of the network that its arguments describe."""
    description = checkpoint.description
    generator = build(description.arguments, checkpoint.tensors)
    labels = description.labels if generator.categories > 1 else None
    if generator.categories > 1 and len(labels or ()) != generator.categories:
        raise ConfigError(f"{len(labels or ())} labels for {generator.categories} classes; there must be as many")
    network = Frozen(generator, place.device, getattr(torch, place.precision))
    classes = generator.categories if generator.categories > 1 else 0
    means = stored_means(checkpoint.tensors, generator) or compute_means(network.mapping, generator.size, classes, place.device, ROWS)
    info = describe(generator, labels, conf, place)
    canvas = Canvas(network, generator, place.device)
    sample = sample_styles(network.mapping, generator.size, classes, place.device, ROWS)
    directions = find_directions(checkpoint, conf.directions, info, sample)
    return Gan(info, network.mapping, canvas, replace(means, choice=conf.truncation), batch_size(generator, place.device), directions)


def describe(generator: Generator, labels: tuple[str, ...] | None, conf: ModelConf, place: Place) -> Info:
    return Info(
        id=place.id,
        name=conf.name or place.id,
        description=conf.description,
        family="precure",
        width=generator.resolution,
        height=generator.resolution,
        lossy=place.lossy,
        device=place.device,
        digest=place.digest,
        kinds=(Generate.__name__, Synthesize.__name__, Edit.__name__, Project.__name__),
        labels=labels,
        z_size=generator.size,
        w_size=generator.size,
        levels=generator.levels,
        noises=("random", "none"),
        parameters=sum(parameter.numel() for parameter in generator.parameters()),
    )


class Canvas:
    """Renders drafts: noise from each picture's own seed, then the synthesis network; ``generator``'s own has the gradients."""

    def __init__(self, network: Frozen, generator: Generator, device: str) -> None:
        self.network, self.generator, self.device = network, generator, device
        self.areas = [side * side for side in noise_sides(generator.levels)]

    def __call__(self, drafts: Sequence[Draft]) -> Pixels:
        seeds = [draft.noise_seed for draft in drafts]
        noise: Tensor | None = None
        if any(seed is not None for seed in seeds):
            noise = torch.from_numpy(draw_noise(seeds, [sum(self.areas)])[0]).to(self.device)
        styles = torch.from_numpy(np.stack([draft.styles for draft in drafts]))
        pictures = self.network.synthesis(styles.to(self.device), noise)
        pixels = pictures.nan_to_num_().clamp_(0, 1).mul_(255).round_().to(torch.uint8)
        return np.asarray(pixels.permute(0, 2, 3, 1).contiguous().cpu().numpy())

    def planes(self, noise: Noise, seed: int) -> list[Tensor] | None:
        if noise == "none":
            return None
        sides = noise_sides(self.generator.levels)
        planes = draw_noise([seed], self.areas)
        return [torch.from_numpy(plane.reshape(1, 1, side, side)).to(self.device) for plane, side in zip(planes, sides, strict=True)]

    def paint(self, ws: Tensor, planes: Sequence[Tensor] | None) -> Tensor:
        pictures: Tensor = self.generator.synthesis(ws, planes)
        return pictures


def build(arguments: Mapping[str, Any], tensors: Mapping[str, Array]) -> Generator:
    """The network with the checkpoint's parameters, all of which are checked before the network is made. Raises ``ConfigError``."""
    for name, (low, high) in BOUNDS.items():
        if type(value := arguments.get(name)) is not int or not low <= value <= high:
            raise ConfigError(f"argument {name!r} of the network is {value!r}; an integer of {low} to {high} is expected")
    arguments = {name: arguments[name] for name in BOUNDS}
    parameters = {name: parameter(name, tensors.get(name), shape) for name, (_, shape) in layout(arguments).items()}
    if unknown := sorted(set(tensors) - set(parameters) - set(MEANS)):
        raise ConfigError(f"array {unknown[0]!r} is not part of the network that the arguments describe")
    generator = Generator(**arguments)
    generator.load_state_dict(parameters)
    return generator


def stored_means(tensors: Mapping[str, Array], generator: Generator) -> Means | None:
    """The means that the checkpoint holds, if it holds all that there are."""
    names = MEANS if generator.categories > 1 else MEANS[:1]
    if not set(names) <= set(tensors):
        return None
    shapes = ((generator.size,), (generator.categories, generator.size))
    found = [parameter(name, tensors[name], shape).numpy() for name, shape in zip(names, shapes, strict=False)]
    return Means(found[0], found[1] if len(found) > 1 else None)


def batch_size(generator: Generator, device: str) -> int:
    """How many pictures to compute at once: on a CPU as many as leave an activation in its cache, at most ``ROWS``."""
    if device != "cpu":
        return ROWS
    layers = [module for module in generator.modules() if isinstance(module, Layer)]
    largest = max(4 * side * side * len(layer.conv.bias) for side, layer in zip(noise_sides(generator.levels), layers, strict=True))
    return max(1, min(ROWS, CACHE // largest))
