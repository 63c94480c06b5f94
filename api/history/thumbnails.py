"""Small pictures for lists, of pictures that this server made or has rebuilt."""

from __future__ import annotations

import io

from PIL import Image

SIDE = 256
"""Pixels of the longer side; what is no larger has no thumbnail beside it."""
TYPE = "image/webp"


def shrink(data: bytes, *, always: bool = False) -> bytes | None:
    """A WebP of the (first) picture in a file, ``None`` where the file itself is as small, unless ``always``."""
    with Image.open(io.BytesIO(data)) as picture:
        if not always and max(picture.size) <= SIDE and not getattr(picture, "is_animated", False):
            return None
        picture.draft("RGB", (2 * SIDE, 2 * SIDE))
        small = picture.convert("RGB")
    small.thumbnail((SIDE, SIDE), reducing_gap=2.0)
    buffer = io.BytesIO()
    small.save(buffer, "WEBP", quality=80, method=2)
    return buffer.getvalue()
