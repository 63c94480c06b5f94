"""Clients' pictures: from bytes to pixels, with everything about them doubted."""

from __future__ import annotations

import binascii
import io
import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from PIL import ImageFile, JpegImagePlugin, PngImagePlugin, WebPImagePlugin

from api.engine.codec.containers import Bare, bare_jpeg, bare_png, bare_webp, check_rows, sniff
from api.engine.codec.metadata import read_orientation
from api.errors import BadInput, TooLarge, Undecodable
from api.models.jobs import Pixels

DATA_URL = re.compile(r"data:[\w.+-]{1,40}/[\w.+-]{1,40};base64,", re.ASCII | re.IGNORECASE)

Opener = Callable[[io.BytesIO], ImageFile.ImageFile]

# Each format's own class instead of Image.open: that would weigh a picture by a limit which belongs to the whole process.
FORMATS: Mapping[str, tuple[Callable[[bytes], Bare], Opener]] = {
    "PNG": (bare_png, PngImagePlugin.PngImageFile),
    "JPEG": (bare_jpeg, JpegImagePlugin.JpegImageFile),
    "WEBP": (bare_webp, WebPImagePlugin.WebPImageFile),
}


def decode_picture(data: bytes, *, max_pixels: int, formats: Sequence[str] = ("PNG", "JPEG", "WEBP")) -> Pixels:
    """The picture, upright: uint8 (height, width, 3), or 4 where it has transparency.

    Colour profiles are left out, sixteen bits become eight. Raises ``Undecodable`` for other formats and for whatever is broken,
    truncated or animated, and ``TooLarge`` before anything is decoded if it has more than ``max_pixels``.
    """
    name = sniff(data)
    if name is None or name not in formats or name not in FORMATS:
        raise Undecodable(f"unsupported picture: {name or 'not a known format'}; send {', '.join(formats)}")
    strip, opener = FORMATS[name]
    bare = strip(data)
    check_size(bare.width, bare.height, max_pixels)
    try:
        with opener(io.BytesIO(bare.data)) as picture:
            check_size(*picture.size, max_pixels)
            if name == "PNG":
                check_rows(bare.data)
            pixels = take_pixels(picture)
    except (BadInput, MemoryError):
        raise
    except Exception as error:  # Pillow raises whatever its parsers stumble over
        raise Undecodable(f"broken {name}: {type(error).__name__}: {error}") from None
    return turn(pixels, read_orientation(bare.exif))


def unpack_picture(text: str, *, max_bytes: int) -> bytes:
    """The file in a JSON text: base64 (RFC 4648, with padding), perhaps as a data URL. Raises ``Undecodable``, ``TooLarge``."""
    prefix = DATA_URL.match(text)
    body = text[prefix.end() :] if prefix else text
    if 3 * len(body) // 4 > max_bytes + 2:
        raise TooLarge(f"the picture has some {3 * len(body) // 4} bytes; at most {max_bytes} are taken")
    try:
        return binascii.a2b_base64(body, strict_mode=True)
    except ValueError as error:
        raise Undecodable(f"unsupported picture: not base64 (RFC 4648, with padding): {error}") from None


def check_size(width: int, height: int, max_pixels: int) -> None:
    if width < 1 or height < 1:
        raise Undecodable(f"broken picture: {width}×{height} pixels")
    if width * height > max_pixels:
        raise TooLarge(f"the picture has {width}×{height} pixels; at most {max_pixels} are taken")


def take_pixels(picture: ImageFile.ImageFile) -> Pixels:
    picture.load()
    if picture.mode.startswith("I"):  # grey in sixteen bits, which Pillow would clip instead of scaling
        return np.repeat((np.asarray(picture) >> 8).astype(np.uint8)[:, :, None], 3, axis=2)
    return np.array(picture.convert("RGBA" if picture.has_transparency_data else "RGB"))


def turn(pixels: Pixels, orientation: int) -> Pixels:
    """Upright pixels from stored ones (Exif 3.0, tag Orientation)."""
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)
