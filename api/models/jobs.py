"""What a model can be asked for, and what it answers. Plain frozen data: it crosses process borders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal, get_args

import msgspec
import numpy as np
from numpy.typing import NDArray

Noise = Literal["random", "const", "none"]
Floats = NDArray[np.float32]
Pixels = NDArray[np.uint8]
Space = Literal["w", "w+"]


class Job(msgspec.Struct, frozen=True, kw_only=True, eq=False, tag=True, array_like=True):
    """One picture to be made by ``model``. ``seed`` is 0 … 2³²−1; ``None`` is drawn by ``Model.prepare``.

    A ``long`` kind works in steps, between which other jobs have their turn.
    """

    long: ClassVar[bool] = False
    model: str
    seed: int | None = None


class Generate(Job, frozen=True, kw_only=True):
    """A GAN picture from a latent: z = ``sd`` · N(0, I) + ``latent``, then w = mapping(z), truncated by ``psi``.

    ``latent`` has shape (z_size,), zero if ``None``. ``label`` of a conditional model is drawn from the seed
    if ``None``.
    """

    label: str | None = None
    psi: float = 1.0
    cutoff: int | None = None  # levels from this one on are not truncated
    sd: float = 1.0
    latent: Floats | None = None
    noise: Noise = "random"
    rotate: float = 0.0  # degrees, counterclockwise; of models whose ``Info.extra`` says ``movable``
    translate: Sequence[float] = (0.0, 0.0)  # right and down, in picture sides
    noise_seed: int | None = None  # of random noise; ``seed`` if ``None``


class Synthesize(Job, frozen=True, kw_only=True):
    """A GAN picture from styles: ``styles`` has shape (levels, w_size), one row per synthesis level; truncated by ``psi``."""

    styles: Floats
    noise: Noise = "random"
    rotate: float = 0.0
    translate: Sequence[float] = (0.0, 0.0)
    noise_seed: int | None = None
    psi: float = 1.0
    cutoff: int | None = None


class Edit(Generate, frozen=True, kw_only=True):
    """A GAN picture moved along directions in w: styles as ``Generate`` makes them, or those of ``styles``, plus Σ amount · direction.

    ``styles`` has shape (levels, w_size); label, psi, sd and latent then mean nothing. ``directions`` are amounts by names that
    ``Info.extra["directions"]`` tells; ``layers`` the levels, from 0, that a direction moves, where it shall not move all of its own.
    """

    styles: Floats | None = None
    directions: Mapping[str, float] = msgspec.field(default_factory=dict)
    layers: Mapping[str, Sequence[int]] = msgspec.field(default_factory=dict)


class Project(Job, frozen=True, kw_only=True):
    """The styles under which a GAN's picture comes closest to ``image`` (uint8, (H, W, 3), its middle square).

    ``space`` "w" gives all levels the same style. ``starts`` of random styles are followed for the first quarter of ``steps``, the best to
    the end. ``regularisation`` pulls toward the mean w, ``label``'s where one is given. ``noise`` is what the picture is rendered with;
    ``None`` stands for "const" where the model has it, else "none". With ``fit_noise`` noise maps are fitted too, and left out again.
    """

    long: ClassVar[bool] = True
    image: Pixels
    label: str | None = None
    steps: int = 150
    starts: int | None = None
    space: Space = "w+"
    regularisation: float = 0.001
    noise: Noise | None = None
    fit_noise: bool = False


class Diffuse(Job, frozen=True, kw_only=True):
    """A picture from words by a diffusion pipeline; ``None`` stands for the model's default, which ``Model.prepare`` fills in.

    With ``image`` (uint8, (H, W, 3)) the picture starts from it, ``strength`` (0, 1] far away; with ``mask`` (uint8, (H, W), 255 is
    repainted, soft values blend) only a part is made anew. ``width`` and ``height`` are multiples of ``Info.extra["size_unit"]``.
    ``safe`` asks for the safety checker also where the server does not run it on all pictures.
    """

    prompt: str
    negative_prompt: str | None = None
    steps: int | None = None
    guidance_scale: float | None = None
    width: int | None = None
    height: int | None = None
    strength: float | None = None
    scheduler: str | None = None
    image: Pixels | None = None
    mask: Pixels | None = None
    safe: bool = False


Work = Generate | Synthesize | Edit | Project | Diffuse
JOBS: Mapping[str, type[Job]] = {cls.__name__: cls for cls in get_args(Work)}


class Output(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """One picture: ``image`` uint8 (height, width, 3), and what it was made from."""

    image: Pixels
    seed: int
    label: str | None = None
    latent: Floats | None = None  # (z_size,), as it entered the mapping network
    styles: Floats | None = None  # (levels, w_size), as they entered the synthesis network
    extra: dict[str, str | int | float | bool | None] = msgspec.field(default_factory=dict)
