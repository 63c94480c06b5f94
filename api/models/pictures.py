"""Pictures that jobs start from, in the size that models take them in.

Whoever sends a job brings them to it before they travel: a photograph of a camera has 50 MB of pixels, and on their way to an engine, for a
picture of 64 × 64, they would hold up everybody. The model does the same, to which nothing is left then.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil
from typing import Any

import numpy as np
from msgspec.structs import replace
from PIL import Image

from api.models.base import Info
from api.models.jobs import Diffuse, Job, Pixels, Project


def has_picture(job: Job) -> bool:
    return isinstance(job, Project | Diffuse) and job.image is not None


def slim(job: Job, info: Info) -> Job:
    """The job, to which the model makes the same picture, with as little of its pictures as the model looks at. It may take 0.1 s.

    What the model is to refuse stays as it is.
    """
    if isinstance(job, Project) and job.image.ndim == 3:
        square = middle_square(job.image)
        return replace(job, image=resize(square, info.width, info.width) if len(square) > info.width else np.ascontiguousarray(square))
    if not isinstance(job, Diffuse) or job.image is None or job.image.ndim != 3:
        return job
    height, width = job.image.shape[:2]
    if 0 in job.image.shape or (job.mask is not None and job.mask.shape != (height, width)):
        return job
    own = near_size(width, height, info.extra)
    wide, high = own[0] if job.width is None else job.width, own[1] if job.height is None else job.height
    if min(wide, high) < 1 or wide * high >= width * height:
        return job
    mask = None if job.mask is None else resize(job.mask, wide, high)
    return replace(job, image=resize(job.image, wide, high), mask=mask, width=wide, height=high)


def middle_square(picture: Pixels) -> Pixels:
    """uint8 (H, W, channels) ↦ (least, least, 3)."""
    height, width = picture.shape[:2]
    least = min(height, width)
    top, left = (height - least) // 2, (width - least) // 2
    return picture[top : top + least, left : left + least, :3]


def near_size(width: int, height: int, extra: Mapping[str, Any]) -> tuple[int, int]:
    """The nearest size that a diffusion model can make, of about the same shape; ``extra`` is its ``Info``'s."""
    unit, largest = extra["size_unit"], extra["max_size"]
    scale = min(1.0, largest / max(width, height))
    smallest = ceil(extra["min_size"] / unit) * unit
    found = [max(smallest, round(side * scale / unit) * unit) for side in (width, height)]
    return min(found[0], largest // unit * unit), min(found[1], largest // unit * unit)


def resize(picture: Pixels, width: int, height: int) -> Pixels:
    """uint8 (H, W) or (H, W, 3)."""
    if picture.shape[:2] == (height, width):
        return picture
    return np.asarray(Image.fromarray(np.ascontiguousarray(picture)).resize((width, height), Image.Resampling.LANCZOS))
