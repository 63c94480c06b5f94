"""From the recipe in a picture back to the job that makes it, where the recipe tells all of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from api.errors import ServerError
from api.models.base import Info
from api.models.jobs import Job
from api.schemas.diffusion import Text2Img
from api.schemas.editing import EditRequestBody
from api.schemas.requests import GenerateQuery

GAN = {"Seed": "seed", "Psi": "psi", "SD": "sd", "Label": "label", "Noise": "noise", "Cutoff": "cutoff"}
GAN |= {"Rotate": "rotate", "Translate": "translate", "Noise seed": "noise_seed"}
EDIT = {key: value for key, value in GAN.items() if key != "SD"} | {"Directions": "directions", "Layers": "layers"}
WORDS = {"Prompt": "prompt", "Negative prompt": "negative_prompt", "Steps": "steps", "Sampler": "scheduler", "CFG scale": "cfg_scale"}
WORDS |= {"Seed": "seed"}


def job_of(info: Info, recipe: Mapping[str, Any]) -> Job | None:
    """``None`` where the recipe only names what the picture was made from, such as styles, or is not one of this model."""
    told = {key: value for key, value in recipe.items() if key not in ("Model", "Size")}
    try:
        if "Diffuse" in info.kinds:
            return diffuse(info, told, recipe)
        if "Directions" in told and told.get("SD", 1.0) == 1.0:
            return EditRequestBody.model_validate(rename(told, EDIT, ("SD",))).job(info)
        return GenerateQuery.model_validate(rename(told, GAN)).jobs(info, None)[0]
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError, ValidationError, ServerError):
        return None


def rename(told: Mapping[str, Any], names: Mapping[str, str], ignored: tuple[str, ...] = ()) -> dict[str, Any]:
    """Raises ``KeyError`` for a key that is not among the names."""
    return {names[key]: read(key, value) for key, value in told.items() if key not in ignored}


def read(key: str, value: Any) -> Any:
    if key in ("Directions", "Layers"):
        return json.loads(value)
    return [float(part) for part in value.split()] if key == "Translate" else value


def diffuse(info: Info, told: Mapping[str, Any], recipe: Mapping[str, Any]) -> Job:
    width, _, height = recipe["Size"].partition("x")
    params = Text2Img.model_validate(rename(told, WORDS) | {"width": int(width), "height": int(height)})
    return params.job(info, params.seed or 0)
