"""Walks between pictures: what clients send, how it becomes frames, and how these become an animation."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from msgspec.structs import replace
from pydantic import BaseModel, Field

from api.engine.codec import MOTION_TYPES, Motion, animate, recipe_text
from api.engine.wire import Picture
from api.errors import BadInput
from api.history.origin import Entry, told
from api.models.base import Info
from api.models.jobs import Floats, Generate, Noise, Pixels, Synthesize
from api.models.latents import check_generate, draw_latent
from api.models.paths import closed, keep_lengths, linear, spherical
from api.schemas.editing import Psi, Rows, Seed, check_sources, read_styles
from api.schemas.recipes import digest, rendering_recipe
from api.schemas.requests import SEEDS, Base64, Rendering, Style, check_kind, read_array
from api.schemas.work import Task

WALK = "Interpolate"
MAX_PIXELS = 1 << 26  # of all frames of an animation


@dataclass(frozen=True, slots=True)
class Walk:
    """The jobs of an animation's frames. ``parameters`` make the same walk again."""

    info: Info
    jobs: Sequence[Generate] | Sequence[Synthesize]
    kind: Motion
    fps: int
    recipe: Mapping[str, Any]
    parameters: Mapping[str, Any]

    def animate(self, frames: Sequence[Picture]) -> Picture:
        """The animation of the jobs' PNG files. It takes a while."""
        data = animate([frame.data for frame in frames], self.kind, self.fps, recipe_text(self.recipe))
        return replace(frames[0], data=data, mime_type=MOTION_TYPES[self.kind])

    def entry(self, animation: Picture, cover: bytes) -> Entry:
        """What the history keeps of it."""
        job = {"kind": WALK, "digest": self.info.digest, "parameters": self.parameters}
        return Entry(kind=WALK.lower(), model=self.info.id, picture=animation, recipe=told(self.recipe), job=job, cover=cover)


class Walking(BaseModel):
    seeds: list[Seed] | None = Field(None, min_length=2, max_length=32, description="Points of the walk: the latents of seeds,")
    latents: list[Base64] | None = Field(None, min_length=2, max_length=32, description="or latents z, (latentSize,) each,")
    styles: list[Style | Rows] | None = Field(None, min_length=2, max_length=32, description="or styles: one a point, or one a level")
    loop: bool = Field(False, description="Come back to the first point, on a smooth curve through all")
    frames: int = Field(60, ge=2, le=300)
    fps: int = Field(20, ge=1, le=50)
    format: Motion = Field("webp", description="The animation's, where Accept does not tell")
    seed: Seed | None = Field(None, description="The noise's seed, the same in all frames; drawn and told if absent")
    label: str | None = Field(None, min_length=1, description="A class of a conditional model; drawn from the seed if absent")
    psi: Psi | None = Field(None, description="Truncation; 1 if absent")
    noise: Noise = "random"


class InterpolateRequestBody(Rendering, Walking):
    def walk(self, info: Info, kind: Motion | None = None) -> Walk:
        """``kind`` is the animation's where it is not ``format``. Raises ``BadInput``, ``BadArray``, ``Undecodable``, ``NoSuchLabel``."""
        jobs = self.jobs(info)
        fixed = self.model_copy(update={"seed": jobs[0].seed, "format": kind or self.format})
        parameters = {name: value for name, value in fixed.model_dump(mode="json", exclude_none=True).items() if name in FIELDS}
        return Walk(info, jobs, fixed.format, self.fps, self.recipe(info, jobs), parameters)

    def jobs(self, info: Info) -> list[Generate] | list[Synthesize]:
        """A job a frame. Raises ``BadInput``, ``BadArray``, ``Undecodable``, ``NoSuchLabel``."""
        self.check(info)
        seed = secrets.randbelow(SEEDS) if self.seed is None else self.seed
        how = {"noise": self.noise} | self.rendering()
        if self.styles is not None:
            points = np.stack([read_styles([text] if isinstance(text, str) else text, info) for text in self.styles])
            rows = (closed if self.loop else linear)(points, self.frames)
            return [Synthesize(model=info.id, seed=seed, styles=row, **how) for row in rows]
        points = self.latent_points(info)
        path = keep_lengths(closed(points, self.frames), points) if self.loop else spherical(points, self.frames)
        psi = 1.0 if self.psi is None else self.psi
        return [Generate(model=info.id, seed=seed, label=self.label, psi=psi, sd=0.0, latent=z, **how) for z in path]

    def check(self, info: Info) -> None:
        check_kind(info, Generate.__name__)
        if sum(points is not None for points in (self.seeds, self.latents, self.styles)) != 1:
            raise BadInput("exactly one of seeds, latents and styles is expected")
        check_sources(self.styles, None, self.label, self.psi, self.cutoff)
        check_generate(info, Generate(model=info.id, label=self.label, noise=self.noise, **self.rendering()))
        if self.frames * info.width * info.height > MAX_PIXELS:
            most = MAX_PIXELS // (info.width * info.height)
            raise BadInput(f"{self.frames} frames of {info.width}x{info.height} are too many; up to {most} are made")

    def latent_points(self, info: Info) -> Floats:
        if self.latents is not None:
            return np.stack([read_array(text, info.z_size) for text in self.latents])
        return np.stack([draw_latent(Generate(model=info.id, seed=seed), info.z_size)[0] for seed in self.seeds or ()])

    def recipe(self, info: Info, jobs: Sequence[Generate | Synthesize]) -> dict[str, Any]:
        """Of the whole animation."""
        points = " ".join(map(str, self.seeds)) if self.seeds else digest(np.stack([points_of(job) for job in jobs]))
        found: dict[str, Any] = {
            "Seed": jobs[0].seed,
            "Model": info.id,
            "Size": f"{info.width}x{info.height}",
            "Frames": self.frames,
            "FPS": self.fps,
        }
        found |= {"Points": points, "Loop": self.loop, "Psi": self.psi, "Label": self.label, "Noise": self.noise}
        found |= rendering_recipe(jobs[0])
        return {key: value for key, value in found.items() if value is not None}


def points_of(job: Generate | Synthesize) -> Floats:
    made = job.styles if isinstance(job, Synthesize) else job.latent
    assert made is not None
    return made


class Animation(BaseModel):
    model: str = Field(examples=["faces"])
    width: int = Field(ge=1)
    height: int = Field(ge=1)
    mimeType: str = Field(examples=["image/webp"])
    data: str = Field(description="The animation in base64")
    frames: int = Field(ge=2)
    fps: int = Field(ge=1)
    seed: int = Field(ge=0, lt=SEEDS, description="The noise's seed that was used")
    label: str | None = None


class InterpolateTask(InterpolateRequestBody, Task):
    kind = Generate.__name__
    params_type: Literal["interpolate"]

    def work(self, info: Info, pictures: Mapping[str, Pixels]) -> Walk:
        return self.walk(info)


FIELDS = set(InterpolateRequestBody.model_fields)
