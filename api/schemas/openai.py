"""OpenAI's image API: what its clients send, and the shapes they expect."""

from __future__ import annotations

import base64
import hashlib
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from api.engine.codec import Encoding, Format
from api.engine.wire import Picture
from api.errors import BadInput
from api.models.base import Info
from api.models.jobs import Generate, Job, Pixels
from api.schemas.diffusion import LONGEST, Changing, Diffusion, check_count, draw_seeds
from api.schemas.requests import SEEDS

SIZE = re.compile(r"(\d{1,5})x(\d{1,5})", re.ASCII)
WORDS = re.compile(r"\bseed[ :=#]*(\d{1,10})\b", re.IGNORECASE | re.ASCII)


class Fault(BaseModel):
    message: str
    type: Literal["invalid_request_error", "rate_limit_error", "server_error"]
    param: str | None = Field(description="What is wrong, as far as it is one parameter")
    code: str | None


class Envelope(BaseModel):
    """An error of the routes under /v1."""

    error: Fault


def is_openai(path: str) -> bool:
    return path.startswith("/v1/")


def status_of(path: str, status: int) -> int:
    """The status of an error at this path: OpenAI's clients know 400 for whatever is wrong with their input."""
    return 400 if is_openai(path) and status in (415, 422) else status


def envelope(status: int, detail: Any, code: str | None = None, param: str | None = None) -> dict[str, Any]:
    """An error as these clients read it."""
    message = detail if isinstance(detail, str) else f"{detail.get('msg')}: {detail.get('name')}"
    kind = "server_error" if status >= 500 else "rate_limit_error" if status == 429 else "invalid_request_error"
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def envelope_faults(faults: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What is wrong with a request; the first fault names the parameter."""
    places = [".".join(map(str, fault["loc"][1:])) for fault in faults]
    message = "; ".join(f"{place}: {fault['msg']}" if place else str(fault["msg"]) for place, fault in zip(places, faults, strict=True))
    return envelope(400, message, "invalid_parameter", places[0] or None)


class Common(BaseModel):
    """What generations and edits share. What is not listed is ignored, and told in a header."""

    model_config = ConfigDict(extra="allow")

    prompt: str = Field(max_length=LONGEST, description="Words; for a GAN the label, or what the seed is drawn from")
    model: str | None = Field(None, description="A model's id; the first that can do it if absent")
    n: int = Field(1, ge=1, le=10, description="Picture i has seed + i")
    size: str = Field("auto", pattern=r"^(auto|\d{1,5}x\d{1,5})$", description="auto is the model's own")
    response_format: Literal["b64_json", "url"] = "b64_json"
    output_format: Literal["png", "jpeg", "webp"] = "png"
    output_compression: int | None = Field(None, ge=0, le=100, description="Quality of JPEG and WebP")
    stream: bool = False
    partial_images: int = Field(0, ge=0, le=3, description="In a stream: pictures on the way")
    seed: int | None = Field(None, ge=0, lt=SEEDS)
    psi: float = Field(1.0, gt=0, le=2, description="GANs: truncation")
    negative_prompt: str | None = Field(None, max_length=LONGEST)
    steps: int | None = Field(None, ge=1, le=150)
    guidance_scale: float | None = Field(None, ge=0, le=20, allow_inf_nan=False)
    scheduler: str | None = Field(None, max_length=64)
    strength: float | None = Field(None, gt=0, le=1)

    def encoding(self) -> Encoding:
        form: Format = self.output_format
        quality = None if self.output_compression is None or form == "png" else max(1, self.output_compression)
        return Encoding(form, quality)

    def side(self, index: int) -> int | None:
        match = SIZE.fullmatch(self.size)
        return int(match[index + 1]) if match else None

    def jobs(self, info: Info, image: Pixels | None = None, mask: Pixels | None = None) -> list[Job]:
        """Raises ``BadInput``."""
        return self.faces(info) if "Diffuse" not in info.kinds else self.drafts(info, image, mask)

    def faces(self, info: Info) -> list[Job]:
        """A GAN's: the label that the prompt names, and the seed that it tells or, by its words, is."""
        label = find_label(self.prompt, info.labels or ())
        told = WORDS.search(self.prompt)
        seed = self.seed if self.seed is not None else int(told[1]) % SEEDS if told else hash_words(self.prompt)
        return [Generate(model=info.id, seed=each, label=label, psi=self.psi) for each in draw_seeds(seed, self.n)]

    def drafts(self, info: Info, image: Pixels | None, mask: Pixels | None) -> list[Job]:
        check_count(info, self.n)
        names = {"prompt": self.prompt, "negative_prompt": self.negative_prompt, "cfg_scale": self.guidance_scale, "steps": self.steps}
        params = Draft.model_validate(names | {"scheduler": self.scheduler, "strength": None if image is None else self.strength})
        # Set past the schema, whose multiples of 8 the model's own description goes beyond.
        params = params.model_copy(update={"width": self.side(0), "height": self.side(1)})
        return [params.job(info, seed, image, mask) for seed in draw_seeds(self.seed, self.n)]

    def ignored(self, info: Info) -> list[str]:
        """The fields that were sent and change nothing here."""
        sent = set(self.model_fields_set)
        found = sent & set(self.model_extra or ())
        if "Diffuse" in info.kinds:
            found |= sent & {"psi"}
        else:
            found |= sent & {"negative_prompt", "steps", "guidance_scale", "scheduler", "strength", "partial_images"}
            found |= {"size"} if self.size not in ("auto", f"{info.width}x{info.height}") else set()
        return sorted(found)


class Draft(Diffusion, Changing):
    """The same in the words of the other diffusion routes."""


class Generations(Common):
    """The body of POST /v1/images/generations."""


class Edits(Common):
    """The fields of POST /v1/images/edits beside its pictures."""


def find_label(prompt: str, labels: Sequence[str]) -> str | None:
    """The longest label that stands in the prompt as words of its own."""
    folded = fold(prompt)
    likely = [label for label in labels if fold(label) in folded]  # expressions are slow to make, and labels may be many
    found = [label for label in likely if re.search(rf"(?<!\w){re.escape(label)}(?!\w)", prompt, re.IGNORECASE)]
    exact = [label for label in found if re.search(rf"(?<!\w){re.escape(label)}(?!\w)", prompt)]
    return max(exact or found, key=len, default=None)


def fold(text: str) -> str:
    """Equal wherever ``re.IGNORECASE`` sees no difference, which takes the Turkish letters, with a dot and without, for an i."""
    return text.casefold().replace("\u0307", "").replace("ı", "i")


def hash_words(prompt: str) -> int:
    words = " ".join(prompt.split())
    return int.from_bytes(hashlib.sha256(words.encode(errors="replace")).digest()[:4])


def split_alpha(mask: Pixels) -> Pixels:
    """OpenAI's masks: what is transparent is repainted. (H, W, 3), white where it is."""
    if mask.shape[2] != 4:
        raise BadInput("the mask has no alpha channel; what is transparent in it is repainted")
    return np.repeat(255 - mask[:, :, 3:], 3, axis=2)


def completed(picture: Picture, url: str | None = None) -> dict[str, Any]:
    """One entry of ``data``."""
    entry: dict[str, Any] = {"b64_json": base64.b64encode(picture.data).decode()} if url is None else {"url": url}
    return entry | {"seed": picture.seed}


def told(params: Common, pictures: Sequence[Picture], data: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {"created": int(time.time()), "data": list(data), **common(params, pictures[0]), "usage": usage()}


def common(params: Common, picture: Picture) -> dict[str, Any]:
    return {
        "background": "opaque",
        "output_format": params.output_format,
        "quality": "auto",
        "size": f"{picture.width}x{picture.height}",
    }


def usage() -> dict[str, Any]:
    """Nobody is billed; clients want the shape."""
    return {"input_tokens": 0, "input_tokens_details": {"image_tokens": 0, "text_tokens": 0}, "output_tokens": 0, "total_tokens": 0}
