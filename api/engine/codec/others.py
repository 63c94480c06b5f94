"""JPEG, WebP and AVIF, written by Pillow."""

from __future__ import annotations

import io
from typing import Any

# Named here so that they are registered once, before threads encode.
from PIL import AvifImagePlugin, Image, JpegImagePlugin, WebPImagePlugin

from api.engine.codec.metadata import XMP, exif_comment
from api.models.jobs import Pixels

__all__ = ["AvifImagePlugin", "JpegImagePlugin", "WebPImagePlugin", "encode_avif", "encode_jpeg", "encode_webp"]

# A JPEG segment holds 65,533 bytes. A longer recipe is left out: a picture without one beats none.
LONGEST_SEGMENT = 65_533


def save(image: Pixels, name: str, **options: Any) -> bytes:
    picture = Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)
    buffer = io.BytesIO()
    picture.save(buffer, name, xmp=XMP, **options)
    return buffer.getvalue()


def encode_jpeg(image: Pixels, text: str, quality: int) -> bytes:
    """JPEG, from quality 90 with all of its colour (4:4:4). JPEG has no alpha: a fourth channel is left out."""
    exif = exif_comment(text) if text else b""
    exif = exif if len(exif) <= LONGEST_SEGMENT else b""
    return save(image[:, :, :3], "JPEG", quality=quality, exif=exif, subsampling=0 if quality >= 90 else 2)


def encode_webp(image: Pixels, text: str, quality: int, lossless: bool) -> bytes:
    """WebP at little effort: more of it takes several times as long for a few per cent of the size."""
    options = {"lossless": True, "method": 0, "quality": 0, "exact": True} if lossless else {"quality": quality, "method": 1}
    return save(image, "WEBP", exif=exif_comment(text) if text else b"", **options)


def encode_avif(image: Pixels, text: str, quality: int) -> bytes:
    """AVIF at a speed that a request can wait for, on one thread: others encode beside it, and bytes must not depend on their number."""
    return save(image, "AVIF", exif=exif_comment(text) if text else b"", quality=quality, speed=10, max_threads=1)
