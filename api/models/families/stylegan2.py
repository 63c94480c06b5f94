"""StyleGAN2 and StyleGAN2-ADA: pictures from latents or styles, with random, stored or no noise, with or without classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from api.conf import ModelConf
from api.errors import ConfigError
from api.models.base import Array, Checkpoint, Info, Model, Place
from api.models.directions import find_directions
from api.models.formats.layouts import stylegan2_arguments, stylegan2_shapes
from api.models.gan import Draft, Gan, parameter
from api.models.jobs import Edit, Generate, Noise, Pixels, Project, Synthesize
from api.models.latents import draw_noise
from api.models.means import MappingNetwork, Means, compute_means, sample_styles
from api.models.nets.rows import GROUP
from api.models.nets.stylegan2 import Generator, Synthesis

W_AVG = "mapping.w_avg"
CLASS_MEANS = "class_mean_w"  # (classes, w_size); beside the network, to spare computing it at load
CACHE = 16 << 20  # bytes of one activation that a batch may fill on a CPU; beyond, more pictures at once are slower
DEFAULT_HALF_LEVELS = 4  # of networks that were trained in float32 alone, when half precision is asked for


def load(checkpoint: Checkpoint, conf: ModelConf, place: Place) -> Model:
    """Raises ``ConfigError`` if the checkpoint's arrays are not those of the network that its arguments describe."""
    arguments, labels = checkpoint.description.arguments, checkpoint.description.labels
    generator = build(arguments, checkpoint.tensors, half=place.precision != "float32")
    generator = generator.to(place.device).freeze(getattr(torch, place.precision))
    if len(labels or ()) != generator.c_size:
        raise ConfigError(f"{len(labels or ())} labels for {generator.c_size} classes; there must be as many")
    means = find_means(checkpoint.tensors, generator.mapping, arguments, place.device, conf.truncation)
    info = describe(generator, arguments, labels, conf, place)
    canvas = Canvas(generator.synthesis, place)
    sample = sample_styles(generator.mapping, arguments["z_size"], arguments["c_size"], place.device, GROUP * 8)
    directions = find_directions(checkpoint, conf.directions, info, sample)
    return Gan(info, generator.mapping, canvas, means, batch_size(arguments, place), directions)


def build(arguments: Mapping[str, Any], tensors: Mapping[str, Array], *, half: bool = False) -> Generator:
    """The network with the checkpoint's parameters, all checked before the network is made. Raises ``ConfigError``."""
    shapes = {name: array.shape for name, array in tensors.items() if name != CLASS_MEANS}
    told = stylegan2_arguments(
        {W_AVG: (shapes.get("mapping.fc0.bias", (0,))[0],), **shapes},
        architecture=arguments.get("architecture"),
        conv_clamp=arguments.get("conv_clamp"),
        half_levels=arguments.get("half_levels", 0),
    )
    if {name: arguments.get(name) for name in told} != told:
        raise ConfigError(f"the arrays are those of another network than the arguments {dict(arguments)} describe")
    if half:
        told["half_levels"] = told["half_levels"] or DEFAULT_HALF_LEVELS
    generator = Generator(**told)
    found = {W_AVG: np.zeros(told["w_size"], np.float32), **tensors}
    generator.load_state_dict({name: parameter(name, found.get(name), shape) for name, shape in stylegan2_shapes(told).items()})
    return generator


def find_means(
    tensors: Mapping[str, Array], mapping: MappingNetwork, arguments: Mapping[str, Any], device: str, choice: str | None
) -> Means:
    """The mean w of the file, and the classes' as computed or stored. Where the file has none, it is computed too."""
    classes, w_size = arguments["c_size"], arguments["w_size"]
    stored = tensors.get(W_AVG)
    wanted = classes if choice != "global" and CLASS_MEANS not in tensors else 0
    means = None
    if stored is None or wanted:
        means = compute_means(mapping, arguments["z_size"], classes, device, GROUP * 8)
    table = parameter(CLASS_MEANS, tensors[CLASS_MEANS], (classes, w_size)).numpy() if CLASS_MEANS in tensors else None
    everything = means.all if stored is None and means is not None else parameter(W_AVG, stored, (w_size,)).numpy()
    return Means(everything, table if means is None else means.classes, choice)


def describe(generator: Generator, arguments: Mapping[str, Any], labels: tuple[str, ...] | None, conf: ModelConf, place: Place) -> Info:
    return Info(
        id=place.id,
        name=conf.name or place.id,
        description=conf.description,
        family="stylegan2",
        width=generator.size,
        height=generator.size,
        lossy=place.lossy,
        device=place.device,
        digest=place.digest,
        kinds=(Generate.__name__, Synthesize.__name__, Edit.__name__, Project.__name__),
        labels=labels,
        z_size=arguments["z_size"],
        w_size=arguments["w_size"],
        levels=generator.synthesis.num_ws,
        noises=("random", "const", "none"),
        parameters=sum(item.numel() for item in generator.parameters()),
    )


class Canvas:
    """Renders drafts: for each picture noise from its own seed, the checkpoint's or none, then the synthesis network."""

    def __init__(self, synthesis: Synthesis, place: Place) -> None:
        self.synthesis, self.device = synthesis, place.device
        self.dtype: torch.dtype = getattr(torch, place.precision)
        self.constants = synthesis.constants()

    def __call__(self, drafts: Sequence[Draft]) -> Pixels:
        styles = torch.from_numpy(np.stack([draft.styles for draft in drafts])).to(self.device)
        return to_pixels(self.synthesis(styles, self.noise(drafts), self.dtype))

    def noise(self, drafts: Sequence[Draft]) -> list[Tensor] | None:
        """(N, 1, side, side) for each layer; ``None`` if no picture has noise."""
        kinds = [draft.job.noise for draft in drafts]
        if set(kinds) == {"none"}:
            return None
        sides = self.synthesis.noise_sides
        planes = draw_noise([draft.noise_seed for draft in drafts], [side * side for side in sides])
        layers = [torch.from_numpy(plane).to(self.device).unflatten(1, (1, side, side)) for plane, side in zip(planes, sides, strict=True)]
        rows = [i for i, kind in enumerate(kinds) if kind == "const"]
        for layer, constant in zip(layers, self.constants, strict=True):
            layer[rows] = constant
        return layers

    def planes(self, noise: Noise, seed: int) -> list[Tensor] | None:
        if noise == "none":
            return None
        if noise == "const":
            return [constant.float() for constant in self.constants]
        sides = self.synthesis.noise_sides
        planes = draw_noise([seed], [side * side for side in sides])
        return [torch.from_numpy(plane.reshape(1, 1, side, side)).to(self.device) for plane, side in zip(planes, sides, strict=True)]

    def paint(self, ws: Tensor, planes: Sequence[Tensor] | None) -> Tensor:
        return to_colours(self.synthesis(ws, planes))


def to_colours(pictures: Tensor) -> Tensor:
    """(N, 1 or 3, H, W) in [-1, 1] ↦ (N, 3, H, W) in [0, 1], not clipped."""
    return (pictures / 2 + 0.5)[:, :3].expand(-1, 3, -1, -1)


def to_pixels(pictures: Tensor) -> Pixels:
    """(N, 1 or 3, H, W) in [-1, 1] ↦ uint8 (N, H, W, 3), rounded down as NVIDIA's tools do."""
    pixels = (pictures.nan_to_num_() * 127.5 + 128).clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
    return np.ascontiguousarray(pixels[..., :3].expand(-1, -1, -1, 3).cpu().numpy())


def batch_size(arguments: Mapping[str, Any], place: Place) -> int:
    """How many pictures to compute at once: on a CPU as many as leave an activation in its cache."""
    largest = max(4 * width * (4 << level) ** 2 for level, width in enumerate(arguments["widths"]))
    return place.max_batch if place.device != "cpu" else max(1, min(place.max_batch, CACHE // largest))
