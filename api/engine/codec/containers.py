"""The outsides of picture files: what they are, how large they claim to be, and their pixels without anything else.

Clients' files are taken apart here, where every length is checked, and put together again with nothing in them but what pixels need: no
text, no profile, no animation reaches a decoder.

Sources: PNG third edition (W3C 2025); JPEG, ITU-T T.81 annex B; WebP, RFC 9649.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from isal import isal_zlib

from api.engine.codec.png import SIGNATURE
from api.errors import Undecodable

MOST_PARTS = 65_536
# A progressive JPEG of many scans costs a pass over the picture for each.
MOST_SCANS = 100
PIECE = 1 << 16

SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type
# First column and row, distance of columns and rows of each pass (PNG, section 8.2).
WHOLE = ((0, 0, 1, 1),)
ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


@dataclass(frozen=True)
class Part:
    """A chunk or segment: its name, and where it (``start``) and its content (``inner``) begin and end."""

    name: bytes
    start: int
    inner: int
    end: int


@dataclass(frozen=True)
class Bare:
    """A picture's pixels and nothing else: a file that is rebuilt from the client's, its size in pixels, and its Exif block."""

    data: bytes
    width: int
    height: int
    exif: bytes = b""


def sniff(data: bytes) -> str | None:
    """The format by its first bytes, in Pillow's name: PNG, JPEG, WEBP or AVIF."""
    if data.startswith(SIGNATURE):
        return "PNG"
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    return "AVIF" if data[4:12] in (b"ftypavif", b"ftypavis") else None


def png_chunks(data: bytes) -> Iterator[Part]:
    """All chunks up to IEND; their CRCs are checked. Raises ``Undecodable``."""
    place = len(SIGNATURE)
    for _ in range(MOST_PARTS):
        length = number(data, ">I", place)
        end = place + 12 + length
        name = data[place + 4 : place + 8]
        if length >= 1 << 31 or isal_zlib.crc32(memoryview(data)[place + 4 : end - 4]) != number(data, ">I", end - 4):
            raise Undecodable(f"broken PNG: wrong length or check sum of the chunk at byte {place}")
        yield Part(name, place, place + 8, end - 4)
        if name == b"IEND":
            return
        place = end
    raise Undecodable(f"broken PNG: more than {MOST_PARTS} chunks")


def jpeg_segments(data: bytes) -> Iterator[Part]:
    """All segments up to the first scan's, which is the last one given. Raises ``Undecodable``."""
    place = 2
    for _ in range(MOST_PARTS):
        while data[place : place + 2] == b"\xff\xff":  # fill bytes
            place += 1
        name = data[place : place + 2]
        if len(name) < 2 or name[0] != 0xFF or name[1] < 0xC0 or 0xD0 <= name[1] <= 0xD9:
            raise Undecodable(f"broken JPEG: no segment where one must be, at byte {place}")
        end = place + 2 + max(2, number(data, ">H", place + 2))
        if end > len(data):
            raise Undecodable(f"truncated JPEG: the segment at byte {place} ends after the file")
        yield Part(name, place, place + 4, end)
        if name == b"\xff\xda":
            return
        place = end
    raise Undecodable(f"broken JPEG: more than {MOST_PARTS} segments")


def webp_chunks(data: bytes) -> Iterator[Part]:
    """All chunks. Raises ``Undecodable``."""
    total = 8 + number(data, "<I", 4)
    if total > len(data):
        raise Undecodable(f"truncated WebP: {len(data)} of {total} bytes")
    place = 12
    for _ in range(MOST_PARTS):
        if place >= total:
            return
        end = place + 8 + number(data, "<I", place + 4)
        if end > total:
            raise Undecodable(f"truncated WebP: the chunk at byte {place} ends after the file")
        yield Part(data[place : place + 4], place, place + 8, end)
        place = end + (end & 1)
    raise Undecodable(f"broken WebP: more than {MOST_PARTS} chunks")


def number(data: bytes, form: str, place: int) -> int:
    if place + struct.calcsize(form) > len(data):
        raise Undecodable(f"truncated picture: it ends after {len(data)} bytes")
    value: int = struct.unpack_from(form, data, place)[0]
    return value


def bare_png(data: bytes) -> Bare:
    """The chunks that make pixels (section 11.2), and tRNS. Raises ``Undecodable``."""
    kept, exif = [SIGNATURE], b""
    for part in png_chunks(data):
        if part.name in (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"):
            kept.append(data[part.start : part.end + 4])
        elif part.name == b"eXIf":
            exif = data[part.inner : part.end]
    if data[12:16] != b"IHDR":
        raise Undecodable("broken PNG: the first chunk must be IHDR")
    return Bare(b"".join(kept), number(data, ">I", 16), number(data, ">I", 20), exif)


def check_rows(data: bytes) -> None:
    """Raises ``Undecodable`` for a PNG whose compressed rows end before the picture does: decoders leave the rest black."""
    width, height, depth, colour, *_, interlace = struct.unpack_from(">IIBBBBB", data, 16)
    bits = depth * SAMPLES.get(colour, 1)
    sizes = [(-(-(width - x) // dx), -(-(height - y) // dy)) for x, y, dx, dy in (ADAM7 if interlace else WHOLE)]
    wanted = sum(rows * (1 + -(-columns * bits // 8)) for columns, rows in sizes if columns > 0)
    stream = b"".join([data[part.inner : part.end] for part in png_chunks(data) if part.name == b"IDAT"])
    found = inflated_size(stream, wanted)
    if found < wanted:
        raise Undecodable(f"truncated PNG: its rows take {wanted} bytes, and {found} are there")


def inflated_size(stream: bytes, enough: int) -> int:
    """How much a zlib stream holds, as far as ``enough`` of it is there. Takes a megabyte at a time."""
    inflate, found = zlib.decompressobj(), 0
    for start in range(0, len(stream), PIECE):
        rest = stream[start : start + PIECE]
        while rest and found < enough and not inflate.eof:
            found += len(inflate.decompress(rest, 16 * PIECE))
            rest = inflate.unconsumed_tail
        if found >= enough or inflate.eof:
            return found
    return found + len(inflate.flush())


def bare_jpeg(data: bytes) -> Bare:
    """Tables, frame header, Adobe's colour mark and all scans. Raises ``Undecodable``."""
    kept, exif, size = [data[:2]], b"", (0, 0)
    for part in jpeg_segments(data):
        marker = part.name[1]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            size = number(data, ">H", part.inner + 3), number(data, ">H", part.inner + 1)
        if marker < 0xE0 or marker == 0xEE:
            kept.append(data[part.start : part.end])
        elif marker == 0xE1 and data.startswith(b"Exif\0\0", part.inner):
            exif = exif or data[part.inner : part.end]
    # In a scan every 0xFF is followed by 0x00 or a restart's number, so that the pairs below are markers.
    last = data.rfind(b"\xff\xd9", part.end)
    if last < 0:
        raise Undecodable("truncated JPEG: it has no end")
    if data.count(b"\xff\xda", part.end) >= MOST_SCANS:
        raise Undecodable(f"unsupported JPEG: more than {MOST_SCANS} scans")
    return Bare(b"".join([*kept, data[part.end : last + 2]]), *size, exif)


def bare_webp(data: bytes) -> Bare:
    """The bitstream and its alpha. Raises ``Undecodable``, also for animations."""
    parts = {part.name: part for part in reversed(list(webp_chunks(data)))}
    if b"ANMF" in parts:
        raise Undecodable("unsupported WebP: an animation; one picture is wanted")
    stream = parts.get(b"VP8L") or parts.get(b"VP8 ")
    if stream is None:
        raise Undecodable("broken WebP: it holds no picture")
    exif = data[parts[b"EXIF"].inner : parts[b"EXIF"].end] if b"EXIF" in parts else b""
    width, height = webp_size(data, stream)
    if not width or not height:
        raise Undecodable(f"broken WebP: {width}×{height} pixels")
    kept = [data[stream.start : stream.end]]
    if stream.name == b"VP8 " and b"ALPH" in parts:
        canvas = struct.pack("<II", 0x10, width - 1)[:7] + struct.pack("<I", height - 1)[:3]
        kept = [b"VP8X\x0a\0\0\0" + canvas, data[parts[b"ALPH"].start : parts[b"ALPH"].end], *kept]
    body = b"WEBP" + b"".join(chunk + bytes(len(chunk) & 1) for chunk in kept)
    return Bare(b"RIFF" + struct.pack("<I", len(body)) + body, width, height, exif)


def webp_size(data: bytes, stream: Part) -> tuple[int, int]:
    """The size in a bitstream's own head (RFC 6386, section 9.1; RFC 9649, section 3.4)."""
    if stream.name == b"VP8L":
        bits = number(data, "<I", stream.inner + 1)
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    return number(data, "<H", stream.inner + 6) & 0x3FFF, number(data, "<H", stream.inner + 8) & 0x3FFF
