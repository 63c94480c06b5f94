"""What clients send to the StyleGAN routes, and how it becomes jobs."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BaseModel, Field

from api.engine.arrays import decode_array, require, tame
from api.errors import BadArray, BadInput
from api.models.base import Info
from api.models.jobs import Floats, Generate, Noise, Synthesize
from api.models.latents import check_generate, check_synthesize
from api.models.styles import blend, broadcast, mix, pick

SEEDS = 2**32
Base64 = Annotated[str, Field(min_length=1, description="base64 of a `.npy` file: version 1, float32")]
Style = Annotated[str, Field(min_length=1, description="base64 of a `.npy` file: w, (styleSize,), or w+, (levels, styleSize)")]
Weight = Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)]
Shift = Annotated[float, Field(ge=-2, le=2)]


class Rendering(BaseModel):
    """What came after the original API's fields, and follows them in all routes."""

    cutoff: int | None = Field(None, ge=0, le=64, description="Levels from this one on, from 0, are not truncated; all are if absent")
    rotate: float = Field(0.0, ge=-360, le=360, description="Degrees, counterclockwise; StyleGAN3 alone")
    translate: list[Shift] = Field(
        default_factory=lambda: [0.0, 0.0],  # pydantic would copy a list, by a search for what is in it
        min_length=2,
        max_length=2,
        description="Right and down, in picture sides; StyleGAN3 alone",
        json_schema_extra={"default": [0.0, 0.0]},
    )
    noise_seed: int | None = Field(None, ge=0, lt=SEEDS, description="Of random noise, the same in all pictures; each one's seed if absent")

    def rendering(self) -> dict[str, Any]:
        """As a job's fields."""
        return {"cutoff": self.cutoff, "rotate": self.rotate, "translate": tuple(self.translate), "noise_seed": self.noise_seed}


class Common(BaseModel):
    """The query that all picture routes share."""

    seed: int | None = Field(None, ge=0, lt=SEEDS, description="Makes the picture repeatable; drawn and told if absent")
    noise: Noise = Field("random", description="Fine detail drawn from the seed, the checkpoint's own, or none")
    count: int = Field(1, ge=1, le=16, description="Pictures to make; picture i has seed + i")

    def seeds(self) -> list[int]:
        """The seed of each picture, drawn if none was given."""
        first = secrets.randbelow(SEEDS) if self.seed is None else self.seed
        return [(first + index) % SEEDS for index in range(self.count)]


class Drawing(Common):
    label: str | None = Field(None, min_length=1, description="A class of a conditional model; drawn from the seed if absent")
    psi: float = Field(1.0, gt=0, le=2, description="Truncation: less is more typical")
    sd: float = Field(1.0, ge=0, le=2, description="Spread of the latent around its centre")


class GenerateQuery(Rendering, Drawing):
    def jobs(self, info: Info, latent: str | None) -> list[Generate]:
        """One job a picture. Raises ``NoSuchLabel``, ``Undecodable``, ``BadArray``, ``BadInput``."""
        check_kind(info, Generate.__name__)
        centre = None if latent is None else read_array(latent, info.z_size)
        told = {"label": self.label, "psi": self.psi, "sd": self.sd, "noise": self.noise} | self.rendering()
        jobs = [Generate(model=info.id, seed=seed, latent=centre, **told) for seed in self.seeds()]
        check_generate(info, jobs[0])
        return jobs


class GenerateRequestBody(BaseModel):
    latent: Base64 | None = Field(None, description="The centre of sampling, (latentSize,); with sd = 0 exactly this latent is rendered")


class ReconstructionRequestBody(BaseModel):
    styles: list[Style] = Field(min_length=1, max_length=64, description="Styles: w, (styleSize,), or w+, (levels, styleSize)")

    def arrays(self, info: Info) -> list[Floats]:
        check_kind(info, Synthesize.__name__)
        return [read_style(style, info) for style in self.styles]


class Truncating(Rendering):
    psi: float = Field(1.0, gt=0, le=2, description="Truncation of the styles toward the mean of all; 1 leaves them")

    def synthesize(self, info: Info, styles: Floats, seeds: Sequence[int], noise: Noise) -> list[Synthesize]:
        """One job a picture. Raises ``BadInput``."""
        told = {"noise": noise, "psi": self.psi} | self.rendering()
        jobs = [Synthesize(model=info.id, seed=seed, styles=styles, **told) for seed in seeds]
        check_synthesize(info, jobs[0])
        return jobs


class Blending(Common):
    weights: list[Weight] | None = Field(None, max_length=64, description="A weight for each style; equal ones if absent")


class BlendQuery(Truncating, Blending):
    def jobs(self, info: Info, styles: Sequence[Floats]) -> list[Synthesize]:
        style = blend(styles, self.weights)
        return self.synthesize(info, broadcast(style, info.levels), self.seeds(), self.noise)


class Mixing(Common):
    levels: list[Annotated[int, Field(ge=0)]] | None = Field(
        None, max_length=64, description="For each level which of the styles it takes, from 0; level j of L takes ⌊j·n/L⌋ if absent"
    )


class MixQuery(Truncating, Mixing):
    def jobs(self, info: Info, styles: Sequence[Floats]) -> list[Synthesize]:
        rows = mix(styles, info.levels) if self.levels is None else pick(styles, self.levels, info.levels)
        return self.synthesize(info, rows, self.seeds(), self.noise)


def check_kind(info: Info, kind: str) -> None:
    """Raises ``BadInput``."""
    if kind not in info.kinds:
        raise BadInput(f"the model {info.id!r} has neither latents nor styles; a GAN is needed")


def read_array(text: str, size: int) -> Floats:
    """A client's vector, shape (size,), without NaN and clipped to ±100."""
    # A header takes 128 bytes at most in version 1 for a vector; the rest is data.
    try:
        return tame(require(decode_array(text, max_bytes=4 * size + 4096), (size,)))
    except BadArray as error:
        # Clients of the original API compare this text.
        raise BadArray() from error


def read_style(text: str, info: Info) -> Floats:
    """A client's style, shape (w_size,) or (levels, w_size), without NaN and clipped to ±100."""
    try:
        array = decode_array(text, max_bytes=4 * info.levels * info.w_size + 4096)
        return tame(require(array, (info.w_size,) if array.ndim == 1 else (info.levels, info.w_size)))
    except BadArray as error:
        raise BadArray() from error
