"""Recipes out of picture files: our own and those of web UIs."""

from __future__ import annotations

import io
import zlib

from PIL import AvifImagePlugin

from api.engine.codec.containers import jpeg_segments, png_chunks, sniff, webp_chunks
from api.engine.codec.metadata import EXIF_PREFIX, read_comment
from api.engine.codec.recipes import Value, parse_recipe
from api.errors import Undecodable

KEYWORD = b"parameters"
LONGEST = 1 << 20


def read_recipe(data: bytes) -> dict[str, Value] | None:
    """The recipe in a PNG, JPEG, WebP or AVIF file, ``None`` if there is none. Never raises, whatever the bytes."""
    try:
        text = read_text(data)
    except Undecodable:
        return None
    return parse_recipe(text) if text else None


def read_text(data: bytes) -> str | None:
    match sniff(data):
        case "PNG":
            return read_png(data)
        case "JPEG":
            blocks = (data[part.inner : part.end] for part in jpeg_segments(data) if part.name == b"\xff\xe1")
            return next(filter(None, (read_comment(block) for block in blocks if block.startswith(EXIF_PREFIX))), None)
        case "WEBP":
            found = (read_comment(data[part.inner : part.end]) for part in webp_chunks(data) if part.name == b"EXIF")
            return next(filter(None, found), None)
        case "AVIF":
            return read_avif(data)
    return None


def read_png(data: bytes) -> str | None:
    """The text ``parameters`` from tEXt, zTXt or iTXt (PNG, section 11.3.3)."""
    for part in png_chunks(data):
        if part.name not in (b"tEXt", b"zTXt", b"iTXt") or not data.startswith(KEYWORD + b"\0", part.inner):
            continue
        content = data[part.inner + len(KEYWORD) + 1 : part.end]
        if part.name == b"tEXt":
            return content[:LONGEST].decode("latin-1")
        if part.name == b"zTXt":
            return inflate(content[1:]).decode("latin-1")
        return read_international(content)
    return None


def read_international(content: bytes) -> str:
    """An iTXt chunk's text, after flag, method, language and translated keyword."""
    *_, text = content[2:].split(b"\0", 2)
    return (inflate(text) if content[:1] == b"\1" else text[:LONGEST]).decode("utf-8", "replace")


def inflate(data: bytes) -> bytes:
    """At most ``LONGEST`` bytes of what is compressed here."""
    try:
        return zlib.decompressobj().decompress(data, LONGEST)
    except zlib.error as error:
        raise Undecodable(f"broken PNG: {error}") from None


def read_avif(data: bytes) -> str | None:
    """Pillow parses the boxes, without decoding the picture."""
    try:
        with AvifImagePlugin.AvifImageFile(io.BytesIO(data)) as picture:
            block = picture.info.get("exif")
    except Exception as error:  # Pillow raises whatever its parsers stumble over
        raise Undecodable(f"broken AVIF: {type(error).__name__}") from None
    return read_comment(block) if isinstance(block, bytes) else None
