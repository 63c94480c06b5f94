"""Pictures to bytes with their recipe in them, and clients' bytes to pictures.

PNG is written by our own writer (``png``), the others by Pillow. Everything here is called on threads beside the device.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

import msgspec
import numpy as np

from api.engine.codec.animations import MOTION_TYPES, Motion, animate
from api.engine.codec.opening import decode_picture, unpack_picture
from api.engine.codec.others import encode_avif, encode_jpeg, encode_webp
from api.engine.codec.png import encode_png
from api.engine.codec.reading import read_recipe
from api.engine.codec.recipes import parse_recipe, recipe_text
from api.errors import BadInput
from api.models.jobs import Pixels

__all__ = [
    "MIME_TYPES",
    "MOTION_TYPES",
    "Encoding",
    "Format",
    "Motion",
    "animate",
    "decode_picture",
    "encode",
    "parse_recipe",
    "read_recipe",
    "recipe_text",
    "unpack_picture",
]

Format = Literal["png", "jpeg", "webp", "avif"]
MIME_TYPES: Mapping[Format, str] = {name: f"image/{name}" for name in get_args(Format)}
QUALITY: Mapping[str, int] = {"jpeg": 90, "webp": 85, "avif": 70}
EXACT = ("png", "webp")


class Encoding(msgspec.Struct, frozen=True, array_like=True):
    """How a picture becomes bytes.

    ``quality`` is 1 … 100 (each format's own scale, its default if ``None``); PNG has none and ignores it. ``lossless`` keeps every
    pixel: PNG always does, WebP on request, JPEG and AVIF cannot. Raises ``BadInput`` for what does not exist.
    """

    format: Format = "png"
    quality: int | None = None
    lossless: bool = False

    def __post_init__(self) -> None:
        if self.format not in MIME_TYPES:
            raise BadInput(f"picture format {self.format!r} is unknown; choose of {', '.join(MIME_TYPES)}")
        if self.quality is not None and not 1 <= self.quality <= 100:
            raise BadInput(f"quality is {self.quality}; it must lie within 1 … 100")
        if self.lossless and self.format not in EXACT:
            raise BadInput(f"{self.format} cannot be lossless; choose of {', '.join(EXACT)}")

    @property
    def mime_type(self) -> str:
        return MIME_TYPES[self.format]


def encode(image: Pixels, encoding: Encoding, recipe: Mapping[str, Any] | None = None) -> bytes:
    """The picture as a file. ``image`` is uint8 (height, width, 1 | 3 | 4): grey, RGB or RGBA; JPEG leaves alpha out.

    The file tells that a model made it (IPTC digital source type, in XMP) and, if given, its recipe: as PNG text ``parameters``,
    elsewhere as Exif user comment. The same arguments give the same bytes. Raises ``ValueError`` for other arrays.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in (1, 3, 4) or 0 in image.shape:
        raise ValueError(f"{image.dtype} {image.shape}; a picture is uint8 (height, width, 1, 3 or 4)")
    text = recipe_text(recipe) if recipe else ""
    quality = QUALITY.get(encoding.format, 0) if encoding.quality is None else encoding.quality
    match encoding.format:
        case "png":
            return encode_png(image, text)
        case "jpeg":
            return encode_jpeg(image, text, quality)
        case "webp":
            return encode_webp(image, text, quality, encoding.lossless)
        case "avif":
            return encode_avif(image, text, quality)
