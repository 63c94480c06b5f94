"""Arrays as they travel in JSON: base64 of a ``.npy`` file, version 1, float32, without pickle.

The format is NEP 1's (numpy.lib.format). The header is read by a pattern of its own and checked against the length of
what follows before an array is made; nothing in it is evaluated.
"""

from __future__ import annotations

import binascii
import math
import re
import struct
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from api.errors import BadArray, Undecodable
from api.models.jobs import Floats

MAGIC = b"\x93NUMPY\x01\x00"
LENGTH = struct.Struct("<H")
START = len(MAGIC) + LENGTH.size
LONGEST_HEADER = 1024
MOST_AXES = 8
LIMIT = 100.0

ITEM = (
    rb"""['"](?:(descr)['"]\s*:\s*(?:['"]([^'"]*)['"]|\[[^\]]*\])"""
    rb"""|(fortran_order)['"]\s*:\s*(True|False)"""
    rb"""|(shape)['"]\s*:\s*\(([\d,\s]*)\))"""
)
HEADER = re.compile(rb"\s*\{\s*" + ITEM + rb"\s*,\s*" + ITEM + rb"\s*,\s*" + ITEM + rb"\s*,?\s*\}\s*")
SHAPE = re.compile(rb"\s*(?:\d{1,18}\s*(?:,\s*\d{1,18}\s*)*,?\s*)?")


def decode_array(text: str | bytes, *, max_bytes: int) -> Floats:
    """The float32 array in ``text``, C-contiguous, native, perhaps read-only. ``max_bytes`` bounds the file inside the base64.

    Raises ``Undecodable`` for what is no such file (garbage, another version, more or less data than the header tells) and
    ``BadArray`` for a proper file with something else in it: another type than float32 (of either byte order), no element at
    all, or more than fits into ``max_bytes``.
    """
    if len(text) > 4 * (max_bytes // 3 + 1):
        refuse_long(text, max_bytes)
    data = unpack(text)
    shape, swapped, fortran, start = read_head(data)
    if len(data) - start != 4 * math.prod(shape):
        raise Undecodable(f"unsupported array: {len(data) - start} bytes of data where shape {shape} takes {4 * math.prod(shape)}")
    flat: NDArray[Any] = np.frombuffer(data, ">f4" if swapped else "<f4", offset=start)
    array = flat.reshape(shape[::-1]).T if fortran else flat.reshape(shape)
    return np.ascontiguousarray(array, np.float32).reshape(shape)


def refuse_long(text: str | bytes, max_bytes: int) -> None:
    """Tells a real array that is too large from garbage, by its head alone."""
    shape, _, _, start = read_head(unpack(text[: 4 * LONGEST_HEADER]))
    whole = start + 4 * math.prod(shape)
    if len(text) != 4 * -(-whole // 3):
        raise Undecodable(f"unsupported array: {len(text)} characters of base64 where shape {shape} takes {4 * -(-whole // 3)}")
    raise BadArray(f"invalid array: shape {shape} takes {whole} bytes; at most {max_bytes} are taken here")


def unpack(text: str | bytes) -> bytes:
    try:
        return binascii.a2b_base64(text, strict_mode=True)
    except ValueError as error:
        raise Undecodable(f"unsupported array: not base64 (RFC 4648, with padding): {error}") from None


def read_head(data: bytes) -> tuple[tuple[int, ...], bool, bool, int]:
    """(shape, big-endian, Fortran order, where the data starts)."""
    if not data.startswith(MAGIC) or len(data) < START:
        raise Undecodable("unsupported array: not a .npy file of version 1")
    length = LENGTH.unpack_from(data, len(MAGIC))[0]
    if length > LONGEST_HEADER or START + length > len(data):
        raise Undecodable(f"unsupported array: a header of {length} bytes; it must fit into the file and into {LONGEST_HEADER}")
    return *parse_header(data[START : START + length]), START + length


# Clients send the same few headers again and again; a refused one is not kept.
@lru_cache(256)
def parse_header(header: bytes) -> tuple[tuple[int, ...], bool, bool]:
    """(shape, big-endian, Fortran order) from the dictionary literal, whatever its order and spacing."""
    match = HEADER.fullmatch(header)
    groups = match.groups() if match else ()
    found = {groups[i]: groups[i + 1] for i in range(0, len(groups), 2) if groups[i] is not None}
    if len(found) != 3:
        raise Undecodable("unsupported array: the header must tell descr, fortran_order and shape, and nothing else")
    shape = parse_shape(found[b"shape"] or b"")
    descr = (found[b"descr"] or b"a structure").decode("latin-1")
    if descr not in ("<f4", ">f4"):
        raise BadArray(f"invalid array: type {descr!r}; only float32 ('<f4') is taken")
    if 0 in shape:
        raise BadArray(f"invalid array: shape {shape} has no element")
    return shape, descr == ">f4", found[b"fortran_order"] == b"True"


def parse_shape(text: bytes) -> tuple[int, ...]:
    """``(2, 3)`` from ``b"2, 3"``; a lone number needs its comma, as in Python."""
    parts = [int(part) for part in text.replace(b",", b" ").split()]
    if not SHAPE.fullmatch(text) or len(parts) > MOST_AXES or (len(parts) == 1 and b"," not in text):
        raise Undecodable(f"unsupported array: not a shape of at most {MOST_AXES} axes: ({text[:80].decode('latin-1')})")
    return tuple(parts)


def require(array: Floats, shape: tuple[int, ...]) -> Floats:
    """The same array if it has that shape. Raises ``BadArray``."""
    if array.shape != shape:
        raise BadArray(f"invalid array: shape {array.shape}; it must be {shape}")
    return array


def tame(array: Floats) -> Floats:
    """A copy fit for a network: NaN becomes 0, and every value lies within ±100."""
    tamed = np.minimum(np.maximum(array, np.float32(-LIMIT)), np.float32(LIMIT))
    return np.where(tamed == tamed, tamed, np.float32(0))


def encode_array(array: NDArray[np.floating[Any]]) -> str:
    """Base64 of the array as ``numpy.save`` would write it in float32."""
    data = np.ascontiguousarray(array, "<f4").tobytes()
    return binascii.b2a_base64(write_header(array.shape) + data, newline=False).decode("ascii")


@lru_cache(256)
def write_header(shape: tuple[int, ...]) -> bytes:
    """The header in NumPy's own spelling, padded so that the data starts at a multiple of 64."""
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".encode("ascii")
    # NumPy leaves the first axis room to grow to 20 digits in place.
    text += b" " * (21 - len(repr(shape[0]))) if shape else b""
    length = -(-(START + len(text) + 1) // 64) * 64 - START
    return MAGIC + LENGTH.pack(length) + text.ljust(length - 1) + b"\n"
