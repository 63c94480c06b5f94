"""What clients send to the diffusion routes, how it becomes jobs, and what is answered."""

from __future__ import annotations

import base64
import binascii
import secrets
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, Field, model_validator

from api.engine.codec import Format
from api.engine.wire import Picture
from api.errors import BadInput, Undecodable
from api.models.base import Info
from api.models.jobs import Diffuse, Pixels
from api.schemas.recipes import diffuse_recipe
from api.schemas.requests import SEEDS
from api.schemas.work import PictureTask, Work

LONGEST = 100_000
"""Characters; the TOML's ``prompts.max_length`` is the bound that counts."""
ALIASES = {"guidance_scale": "cfg_scale", "guidance": "cfg_scale", "model_id": "model"}
Prompt = Annotated[str, Field(max_length=LONGEST, description="What is to be seen")]
Side = Annotated[int, Field(ge=8, le=8192, multiple_of=8)]
Base64 = Annotated[str, Field(min_length=1, description="A PNG, JPEG or WebP in base64; a `data:` prefix does not matter")]
BlobId = Annotated[str, Field(min_length=1, max_length=64, description="What POST /blob answered")]


class Diffusion(BaseModel):
    """The parameters that all modes share."""

    prompt: Prompt
    negative_prompt: str | None = Field(None, max_length=LONGEST, description="What is not to be seen")
    cfg_scale: float | None = Field(
        None,
        ge=0,
        le=20,
        allow_inf_nan=False,
        examples=[7],
        description="How closely the prompt is followed; 7 or the model's if absent",
    )
    steps: int | None = Field(None, ge=1, le=150, examples=[30], description="Denoising steps; 30 or the model's own if absent")
    seed: int | None = Field(None, ge=0, lt=SEEDS, description="Makes the pictures repeatable; drawn and told if absent")
    width: Side | None = Field(None, examples=[768], description="In pixels; the model's own, or about the initial picture's, if absent")
    height: Side | None = Field(None, examples=[768], description="In pixels; the model's own, or about the initial picture's, if absent")
    scheduler: str | None = Field(None, min_length=1, max_length=64, examples=["dpm++ 2m karras"], description="One of the model's")
    safe: bool = Field(False, description="Have the safety checker look, also where the server does not by itself")
    model: str | None = Field(None, min_length=1, description="A diffusion model's id; the TOML's first one if absent")

    def job(self, info: Info, seed: int, image: Pixels | None = None, mask: Pixels | None = None) -> Diffuse:
        """Raises ``BadInput`` for what the model cannot do, as far as its description tells."""
        job = Diffuse(
            model=info.id,
            seed=seed,
            prompt=self.prompt,
            negative_prompt=self.negative_prompt,
            steps=self.steps,
            guidance_scale=self.cfg_scale,
            width=self.width,
            height=self.height,
            strength=getattr(self, "strength", None),
            scheduler=self.scheduler,
            image=None if image is None else image[:, :, :3],
            mask=None if mask is None else luminance(mask),
            safe=self.safe,
        )
        check(info, job)
        return job


class Several(BaseModel):
    number_of_images: int = Field(1, ge=1, le=8, description="Picture i has seed + i")


class Changing(BaseModel):
    strength: float | None = Field(None, gt=0, le=1, description="How far to leave the initial picture; the model's own if absent")


class Renaming(BaseModel):
    """Takes some parameters by other servers' names, too."""

    @model_validator(mode="before")
    @classmethod
    def rename(cls, data: Any) -> Any:
        return {ALIASES.get(key, key): value for key, value in data.items()} if isinstance(data, dict) else data


class Text2Img(Renaming, Diffusion, Several):
    """The body of POST /text2img/."""


class Img2Img(Renaming, Diffusion, Several, Changing):
    """The body of POST /img2img/."""

    image: Base64


class Inpainting(Renaming, Diffusion, Several, Changing):
    """The body of POST /inpainting/."""

    image: Base64
    mask_image: Annotated[Base64, Field(description="As large as the image; white is repainted, grey blends")]


class Text2ImgQuery(Diffusion, Several):
    format: Format | None = Field(None, description="Instead of negotiating by the Accept header")


class Img2ImgQuery(Text2ImgQuery, Changing):
    initial_image: BlobId


class InpaintQuery(Img2ImgQuery):
    mask: BlobId


class DiffusionTask(Renaming, Diffusion, PictureTask):
    kind = "Diffuse"

    def work(self, info: Info, pictures: Mapping[str, Pixels]) -> Work:
        assert self.seed is not None  # since ``fixed``
        job = self.job(info, self.seed, pictures.get("initial_image"), pictures.get("mask"))
        return Work(job, self.encoding(info), diffuse_recipe(info, job))


class Text2ImgTask(DiffusionTask):
    params_type: Literal["txt2img"]


class Img2ImgTask(DiffusionTask, Changing):
    params_type: Literal["img2img"]
    initial_image: BlobId

    @property
    def blobs(self) -> Mapping[str, str]:
        return {"initial_image": self.initial_image}


class InpaintTask(DiffusionTask, Changing):
    params_type: Literal["inpaint"]
    initial_image: BlobId
    mask: BlobId

    @property
    def blobs(self) -> Mapping[str, str]:
        return {"initial_image": self.initial_image, "mask": self.mask}


class Images(BaseModel):
    images: list[str] = Field(description="The pictures in base64")
    parameters: dict[str, Any] = Field(description="What was really used, with the seeds")

    @classmethod
    def of(cls, info: Info, pictures: Sequence[Picture], ids: Sequence[str] = ()) -> Images:
        first = dict(pictures[0].extra)
        used = first | {"cfg_scale": first.pop("guidance_scale", None), "model": info.id, "number_of_images": len(pictures)}
        used |= {"width": pictures[0].width, "height": pictures[0].height}
        used |= {"seed": pictures[0].seed, "seeds": [picture.seed for picture in pictures]}
        used |= {"image_ids": list(ids)} if ids else {}
        return cls(images=[base64.b64encode(picture.data).decode() for picture in pictures], parameters=used)


def draw_seeds(seed: int | None, count: int) -> list[int]:
    first = secrets.randbelow(SEEDS) if seed is None else seed
    return [(first + index) % SEEDS for index in range(count)]


def check_count(info: Info, count: int) -> None:
    if count > (most := info.extra.get("max_pictures", count)):
        raise BadInput(f"found {count} pictures; the model {info.id!r} makes at most {most} for a request")


def decode_base64(text: str) -> bytes:
    """Raises ``Undecodable``."""
    head, comma, rest = text.partition(",")
    try:
        return base64.b64decode(rest if comma and head.startswith("data:") else text, validate=True)
    except (binascii.Error, ValueError):
        raise Undecodable("not base64") from None


def luminance(picture: Pixels) -> Pixels:
    """A mask as grey levels (ITU-R BT.601), (H, W)."""
    return np.rint(picture[:, :, :3] @ np.array([0.299, 0.587, 0.114], np.float32)).astype(np.uint8)


def check(info: Info, job: Diffuse) -> None:
    """What can be known of the model without asking it, so that a task is refused at once instead of failing later."""
    can = info.extra
    mode = "txt2img" if job.image is None else "img2img" if job.mask is None else "inpaint"
    if mode not in can.get("modes", [mode]):
        raise BadInput(f"the model {info.id!r} cannot do {mode}; it can do {', '.join(can['modes'])}")
    if job.steps is not None and job.steps > can.get("max_steps", job.steps):
        raise BadInput(f"steps is {job.steps}; the model {info.id!r} allows at most {can['max_steps']}")
    for name, side in (("width", job.width), ("height", job.height)):
        if side is not None:
            check_side(info, name, side)
    if job.image is not None and job.mask is not None and job.mask.shape != job.image.shape[:2]:
        sizes = [f"{shape[1]}×{shape[0]}" for shape in (job.mask.shape, job.image.shape)]
        raise BadInput(f"the mask has {sizes[0]} pixels and the image {sizes[1]}; both must agree")
    known = can.get("schedulers", [])
    if job.scheduler is not None and known and plain(job.scheduler) not in map(plain, known):
        raise BadInput(f"scheduler {job.scheduler!r} is unknown; choose of {', '.join(known)}")


def check_side(info: Info, name: str, side: int) -> None:
    low, high, unit = info.extra.get("min_size", 8), info.extra.get("max_size", side), info.extra.get("size_unit", 8)
    if not low <= side <= high or side % unit:
        raise BadInput(f"{name} is {side}; the model {info.id!r} makes {low} to {high} pixels in multiples of {unit}")


def plain(name: str) -> str:
    return name.lower().replace("dpmpp", "dpm++").translate({ord(letter): None for letter in " -_"})
