"""StyleGAN3, T and R: pictures from latents or styles, rotated and shifted as asked; there is no noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import cos, radians, sin
from typing import Any

import numpy as np
import torch
from torch import Tensor

from api.conf import ModelConf
from api.errors import ConfigError
from api.models.base import Array, Checkpoint, Info, Model, Place
from api.models.directions import find_directions
from api.models.families.stylegan2 import CLASS_MEANS, find_means, to_colours, to_pixels
from api.models.formats.layouts import stylegan3_arguments, stylegan3_shapes
from api.models.gan import Draft, Gan, parameter
from api.models.jobs import Edit, Generate, Noise, Pixels, Project, Synthesize
from api.models.means import sample_styles
from api.models.nets.rows import GROUP
from api.models.nets.stylegan3 import Generator, Synthesis

MAPPING = ("z_size", "w_size", "c_size", "mapping_layers", "image_channels", "widths", "kernel")  # told by the shapes


def load(checkpoint: Checkpoint, conf: ModelConf, place: Place) -> Model:
    """Raises ``ConfigError`` if the checkpoint's arrays are not those of the network that its arguments describe."""
    arguments, labels = checkpoint.description.arguments, checkpoint.description.labels
    generator = build(arguments, checkpoint.tensors).to(place.device).freeze(getattr(torch, place.precision))
    if len(labels or ()) != generator.c_size:
        raise ConfigError(f"{len(labels or ())} labels for {generator.c_size} classes; there must be as many")
    means = find_means(checkpoint.tensors, generator.mapping, arguments, place.device, conf.truncation)
    info = describe(generator, arguments, labels, conf, place)
    sample = sample_styles(generator.mapping, arguments["z_size"], arguments["c_size"], place.device, GROUP * 8)
    directions = find_directions(checkpoint, conf.directions, info, sample)
    return Gan(info, generator.mapping, Canvas(generator.synthesis, place), means, place.max_batch, directions)


def build(arguments: Mapping[str, Any], tensors: Mapping[str, Array]) -> Generator:
    """The network with the checkpoint's parameters, all checked before the network is made. Raises ``ConfigError``."""
    shapes = {name: array.shape for name, array in tensors.items() if name != CLASS_MEANS}
    geometry = {name: value for name, value in arguments.items() if name not in MAPPING}
    try:
        told = stylegan3_arguments(shapes, layers=len(arguments["widths"]), **geometry)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ConfigError(f"the arguments {dict(arguments)} do not describe a StyleGAN3: {error!r}") from None
    if {name: arguments.get(name) for name in told} != told:
        raise ConfigError(f"the arrays are those of another network than the arguments {dict(arguments)} describe")
    generator = Generator(**told)
    generator.load_state_dict({name: parameter(name, tensors.get(name), shape) for name, shape in stylegan3_shapes(told).items()})
    return generator


def describe(generator: Generator, arguments: Mapping[str, Any], labels: tuple[str, ...] | None, conf: ModelConf, place: Place) -> Info:
    return Info(
        id=place.id,
        name=conf.name or place.id,
        description=conf.description,
        family="stylegan3",
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
        noises=("random", "const", "none"),  # taken and without effect: this network has none
        parameters=sum(item.numel() for item in generator.parameters()),
        extra={"movable": True},
    )


class Canvas:
    """Renders drafts: each picture with its own rotation and shift of the input."""

    def __init__(self, synthesis: Synthesis, place: Place) -> None:
        self.synthesis, self.device = synthesis, place.device
        self.dtype: torch.dtype = getattr(torch, place.precision)

    def __call__(self, drafts: Sequence[Draft]) -> Pixels:
        styles = torch.from_numpy(np.stack([draft.styles for draft in drafts])).to(self.device)
        moves = torch.stack([pose(draft.job.rotate, draft.job.translate) for draft in drafts]).to(self.device)
        return to_pixels(self.synthesis(styles, moves, self.dtype))

    def planes(self, noise: Noise, seed: int) -> None:
        return None

    def paint(self, ws: Tensor, planes: Sequence[Tensor] | None) -> Tensor:
        return to_colours(self.synthesis(ws))


def pose(angle: float, shift: Sequence[float]) -> Tensor:
    """(3, 3): the inverse of rotating the picture by ``angle`` degrees and moving it by ``shift`` sides, right and down."""
    c, s = cos(radians(angle)), sin(radians(angle))
    matrix = np.array([[c, s, shift[0]], [-s, c, shift[1]], [0, 0, 1]])
    return torch.from_numpy(np.linalg.inv(matrix)).float()
