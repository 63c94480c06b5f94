"""What clients send to edit pictures and to walk between them, and how it becomes jobs."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Field

from api.engine.arrays import encode_array
from api.engine.wire import Picture
from api.errors import BadInput
from api.models.base import Info
from api.models.jobs import Edit, Floats, Noise
from api.models.latents import check_edit
from api.models.styles import mix
from api.schemas.images import CompoundImage
from api.schemas.recipes import digest, generate_recipe
from api.schemas.requests import SEEDS, Base64, Rendering, Style, read_array, read_style

Seed = Annotated[int, Field(ge=0, lt=SEEDS)]
Name = Annotated[str, Field(min_length=1, max_length=200)]
Amount = Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)]
Levels = Annotated[list[Annotated[int, Field(ge=0, le=63)]], Field(min_length=1, max_length=64)]
Psi = Annotated[float, Field(gt=0, le=2)]
Rows = Annotated[list[Style], Field(min_length=1, max_length=64)]


class Direction(BaseModel):
    name: str = Field(examples=["happy"])
    description: str = Field(examples=["Smiling"])
    strength: float = Field(description="What the vector is multiplied by; an amount of 1 is a plain change")
    levels: list[int] | None = Field(description="The levels that it moves unless `layers` says otherwise; null: all")


class Editing(BaseModel):
    seed: Seed | None = Field(None, description="The latent's and the noise's seed; drawn and told if absent")
    latent: Base64 | None = Field(None, description="The latent z itself, (latentSize,), in place of the seed's")
    styles: Rows | None = Field(None, description="In place of a latent's: w+, or w, one for all levels or one a level")
    label: str | None = Field(None, min_length=1, description="A class of a conditional model; drawn from the seed if absent")
    psi: Psi | None = Field(None, description="Truncation of what the latent gives, before directions are added; 1 if absent")
    noise: Noise = Field("random", description="Fine detail drawn from the seed, the checkpoint's own, or none")
    directions: dict[Name, Amount] = Field({}, max_length=64, description="How far to go along each", examples=[{"happy": 0.6}])
    layers: dict[Name, Levels] = Field({}, max_length=64, description="Levels, from 0, that a direction moves; all if absent")


class EditRequestBody(Rendering, Editing):
    def job(self, info: Info) -> Edit:
        """Raises ``BadInput``, ``BadArray``, ``Undecodable``, ``NoSuchDirection``, ``NoSuchLabel``."""
        if Edit.__name__ not in info.kinds:
            raise BadInput(f"the model {info.id!r} has no styles to edit")
        check_sources(self.styles, self.latent, self.label, self.psi, self.cutoff)
        latent = None if self.latent is None else read_array(self.latent, info.z_size)
        job = Edit(
            model=info.id,
            seed=secrets.randbelow(SEEDS) if self.seed is None else self.seed,
            label=self.label,
            psi=1.0 if self.psi is None else self.psi,
            sd=1.0 if latent is None else 0.0,
            latent=latent,
            noise=self.noise,
            styles=None if self.styles is None else read_styles(self.styles, info),
            directions=self.directions,
            layers=self.layers,
            **self.rendering(),
        )
        check_edit(info, job)
        return job


def check_sources(styles: object, latents: object, *others: object) -> None:
    """Raises ``BadInput`` where one parameter would silently win over another."""
    if styles is not None and latents is not None:
        raise BadInput("both styles and a latent are given; a picture is made from one of them")
    if styles is not None and any(other is not None for other in others):
        raise BadInput("styles are given, to which label, psi and cutoff do not apply; leave these out")


def read_styles(texts: Sequence[str], info: Info) -> Floats:
    """(levels, w_size): one style for all levels, one for each, or fewer as ``mix`` spreads them."""
    return mix([read_style(text, info) for text in texts], info.levels)


def edit_recipe(info: Info, job: Edit) -> dict[str, Any]:
    recipe = generate_recipe(info, job)
    if job.styles is not None:
        kept = {key: recipe[key] for key in ("Seed", "Model", "Size", "Noise", "Rotate", "Translate", "Noise seed") if key in recipe}
        recipe = kept | {"Styles": digest(job.styles)}
    moves = {"Directions": dict(sorted(job.directions.items())), "Layers": dict(job.layers)}
    return recipe | {key: value for key, value in moves.items() if value}


class EditedImage(CompoundImage):
    label: str | None = Field(examples=["A"])
    latent: str | None = Field(description="The latent as base64 of `.npy`; null of what was made from styles")

    @classmethod
    def build(cls, model_id: str, picture: Picture) -> Self:
        assert picture.styles is not None
        latent = None if picture.latent is None else encode_array(picture.latent)
        styles = [encode_array(style) for style in picture.styles]
        return cls.model_construct(**cls.common(model_id, picture), styles=styles, label=picture.label, latent=latent, more=None)


class Change(EditRequestBody):
    """What a viewer says: all that is absent stays as it was, null takes back."""

    format: Literal["png", "jpeg", "webp", "avif"] | None = None

    @classmethod
    def merge(cls, known: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
        """A picture's other source, once named, takes the place of the one before."""
        replaced = {"styles": ("latent", "label", "psi", "cutoff"), "latent": ("styles",), "seed": ("latent", "styles")}
        gone = {name for key, names in replaced.items() if change.get(key) is not None for name in names if name not in change}
        whole = {key: value for key, value in known.items() if key not in gone} | change
        return {key: value for key, value in whole.items() if value is not None and key in cls.model_fields}
