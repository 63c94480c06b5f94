"""Animations from pictures that are PNG files: WebP, GIF and APNG, written by Pillow, which play for ever, and MP4."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
from PIL import GifImagePlugin, Image, PngImagePlugin, WebPImagePlugin

from api.engine.codec.films import film
from api.engine.codec.metadata import XMP, exif_comment

__all__ = ["MOTION_TYPES", "GifImagePlugin", "Motion", "WebPImagePlugin", "animate"]

Motion = Literal["webp", "gif", "apng", "mp4"]
MOTION_TYPES: dict[Motion, str] = {"webp": "image/webp", "gif": "image/gif", "apng": "image/apng", "mp4": "video/mp4"}


def animate(pictures: Sequence[bytes], kind: Motion, fps: int, text: str) -> bytes:
    """The pictures one after the other, ``fps`` a second (GIF counts hundredths of a second), with the recipe's ``text``.

    Only the frame at work is in memory as pixels; GIF has 256 colours a frame.
    """
    if kind == "mp4":
        with Image.open(io.BytesIO(pictures[0])) as picture:
            size = picture.size
        return film((np.asarray(frame.convert("RGB")) for frame in Frames(pictures)), size, fps, text)
    first, *others = pictures
    buffer = io.BytesIO()
    with Image.open(io.BytesIO(first)) as picture:
        picture.save(
            buffer,
            "PNG" if kind == "apng" else kind.upper(),
            save_all=True,
            append_images=Frames(others),
            loop=0,
            duration=1000 / fps if kind == "apng" else round(1000 / fps),
            **options(kind, text),
        )
    return buffer.getvalue()


class Frames:
    """Pictures that are opened when it is their turn; writers go through them more than once."""

    def __init__(self, pictures: Sequence[bytes]) -> None:
        self.pictures = pictures

    def __len__(self) -> int:
        return len(self.pictures)

    def __iter__(self) -> Iterator[Image.Image]:
        return (Image.open(io.BytesIO(picture)) for picture in self.pictures)


def options(kind: Motion, text: str) -> dict[str, Any]:
    if kind == "gif":
        return {"comment": text.encode()[:60_000], "disposal": 1}
    if kind == "webp":
        return {"quality": 90, "method": 1, "xmp": XMP, "exif": exif_comment(text)}
    info = PngImagePlugin.PngInfo()
    info.add_itxt("parameters", text)
    info.add_itxt("XML:com.adobe.xmp", XMP.decode())
    return {"pnginfo": info, "compress_level": 3, "default_image": False}
