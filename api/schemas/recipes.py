"""Recipes: what makes a picture again, for the picture's own metadata."""

from __future__ import annotations

import hashlib
from typing import Any

from api.models.base import Info
from api.models.jobs import Diffuse, Floats, Generate, Pixels, Synthesize


def generate_recipe(info: Info, job: Generate) -> dict[str, Any]:
    """What makes the picture again; a latent is too long for it and is named by its digest."""
    recipe: dict[str, Any] = {"Seed": job.seed, "Model": info.id, "Size": f"{info.width}x{info.height}", "Psi": job.psi, "SD": job.sd}
    if job.label is not None:
        recipe["Label"] = job.label
    if job.latent is not None:
        recipe["Latent"] = digest(job.latent)
    return recipe | {"Noise": job.noise} | rendering_recipe(job)


def synthesize_recipe(info: Info, job: Synthesize) -> dict[str, Any]:
    """What the picture was made from; the styles are too long for it and are named by their digest."""
    recipe = {"Seed": job.seed, "Model": info.id, "Size": f"{info.width}x{info.height}", "Styles": digest(job.styles), "Noise": job.noise}
    psi = {} if job.psi == 1 else {"Psi": job.psi}
    return recipe | psi | rendering_recipe(job)


def rendering_recipe(job: Generate | Synthesize) -> dict[str, Any]:
    """What differs from the plain way."""
    shift = " ".join(map(repr, job.translate)) if any(job.translate) else None
    told = {"Cutoff": job.cutoff, "Rotate": job.rotate or None, "Translate": shift, "Noise seed": job.noise_seed}
    return {key: value for key, value in told.items() if value is not None}


def diffuse_recipe(info: Info, job: Diffuse) -> dict[str, Any]:
    """In the words of web UIs for diffusion. What the request left open is the model's default."""
    own = info.extra
    recipe: dict[str, Any] = {
        "Prompt": job.prompt,
        "Negative prompt": job.negative_prompt or None,
        "Steps": own.get("steps") if job.steps is None else job.steps,
        "Sampler": job.scheduler or own.get("scheduler"),
        "CFG scale": own.get("guidance_scale") if job.guidance_scale is None else job.guidance_scale,
        "Seed": job.seed,
        "Size": recipe_size(info, job),
        "Model": info.id,
        "Denoising strength": job.strength,
        "Image": None if job.image is None else digest(job.image),
        "Mask": None if job.mask is None else digest(job.mask),
    }
    return {key: value for key, value in recipe.items() if value is not None}


def recipe_size(info: Info, job: Diffuse) -> str | None:
    if job.image is not None and None in (job.width, job.height):
        return None  # about the picture's: the model finds it
    return f"{job.width or info.width}x{job.height or info.height}"


def digest(array: Floats | Pixels) -> str:
    return hashlib.sha256(array.tobytes()).hexdigest()[:16]
