"""A PNG writer that keeps up with a GPU (PNG specification, third edition, W3C 2025).

Pillow's default spends its time in zlib. ISA-L's deflate at level 1 is some twenty times as fast and, behind one filter for the whole
picture, a few per cent larger on photographs and faces. Of the filters, "average" saves 4 % more on photographs and loses 3 % on drawn
faces at several times the cost of "up", "Paeth" costs more than the deflate behind it, and higher levels cost more than they save.
The bytes depend on ISA-L's version and the processor's instructions, the pixels on neither.
"""

from __future__ import annotations

import struct
from functools import lru_cache

import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray

from api.engine.codec.metadata import XMP
from api.models.jobs import Pixels

SIGNATURE = b"\x89PNG\r\n\x1a\n"
COLOUR_TYPES = {1: 0, 3: 2, 4: 6}
NONE, UP = 0, 2
LEVEL = 1

WORDS = struct.Struct(">II")
LENGTH = struct.Struct(">I")
HEADER = struct.Struct(">IIBBBBB")


def chunk(kind: bytes, content: bytes) -> bytes:
    """Length, type, content, CRC of type and content (section 5.3)."""
    return b"".join((LENGTH.pack(len(content)), kind, content, LENGTH.pack(isal_zlib.crc32(content, isal_zlib.crc32(kind)))))


XMP_CHUNK = chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP)
TAIL = chunk(b"IEND", b"")
CRC_IDAT = isal_zlib.crc32(b"IDAT")


@lru_cache(64)
def head(height: int, width: int, channels: int) -> bytes:
    header = HEADER.pack(width, height, 8, COLOUR_TYPES[channels], 0, 0, 0)
    return SIGNATURE + chunk(b"IHDR", header) + XMP_CHUNK


def encode_png(image: Pixels, text: str = "") -> bytes:
    """The picture, uint8 (height, width, 1 | 3 | 4), as a PNG file with ``text`` as its ``parameters``."""
    height, width, channels = image.shape
    data = deflate(image.reshape(height, width * channels))
    crc = isal_zlib.crc32(data, CRC_IDAT)
    parameters = text_chunk(text) if text else b""
    return b"".join((head(height, width, channels), parameters, WORDS.pack(len(data), 0x49444154), data, LENGTH.pack(crc), TAIL))


def text_chunk(text: str) -> bytes:
    """The recipe where web UIs look for it: tEXt, which is Latin-1, or iTXt where that cannot hold it."""
    try:
        return chunk(b"tEXt", b"parameters\0" + text.encode("latin-1"))
    except UnicodeEncodeError:
        return chunk(b"iTXt", b"parameters\0\0\0\0\0" + text.encode("utf-8"))


def deflate(rows: Pixels) -> bytes:
    """``rows`` (height, bytes a row) filtered and compressed."""
    if not is_flat(rows):
        return compress(filter_up(rows))
    # Drawings repeat themselves, and a filter may hide it: only deflate can tell, here of the middle.
    height = len(rows)
    band = rows[height // 2 - height // 16 - 16 :][: height // 8 + 32] if height > 64 else rows
    best = min((filter_up, filter_none), key=lambda each: len(compress(each(band))))
    return compress(best(rows))


def compress(filtered: Pixels) -> bytes:
    data: bytes = isal_zlib.compress(filtered, LEVEL)
    return data


def is_flat(rows: Pixels) -> bool:
    """Whether three of four values equal the one above, judged by every eighth row."""
    below, above = rows[1::8], rows[:-1:8]
    return bool(4 * np.count_nonzero(below == above) > 3 * below.size)


def filter_none(rows: Pixels) -> Pixels:
    out = blank(rows, NONE)
    out[:, 1:] = rows
    return out


def filter_up(rows: Pixels) -> Pixels:
    """Each value less the one above."""
    out = blank(rows, UP)
    out[0, 1:] = rows[0]
    np.subtract(rows[1:], rows[:-1], out=out[1:, 1:])
    return out


def blank(rows: Pixels, kind: int) -> NDArray[np.uint8]:
    """Room for filtered rows, with the filter's number before each."""
    out = np.empty((rows.shape[0], rows.shape[1] + 1), np.uint8)
    out[:, 0] = kind
    return out
