"""Zip archives as torch writes them, read without copying: stored entries only, every size checked against the file.

Layout after PKWARE's APPNOTE 6.3.10, sections 4.3.7 (local header), 4.3.12 (central directory), 4.3.14 to 4.3.16 (its end).
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from itertools import pairwise

from api.models.formats.pickles import Budget, decode, refuse

MAGIC = b"PK\x03\x04"
_LOCAL = struct.Struct("<4s5H3I2H")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_END = struct.Struct("<4s4H2IH")
_END64 = struct.Struct("<4sQ2H2I4Q")
_LOCATOR = struct.Struct("<4sIQI")
_BIG = 0xFFFFFFFF


@dataclass(frozen=True)
class Entry:
    """One stored file: ``data`` is a view into the archive."""

    data: memoryview
    checksum: int

    def checked(self) -> memoryview:
        """The data, after comparing its CRC-32 with what the archive says."""
        if zlib.crc32(self.data) != self.checksum:
            refuse("a zip entry whose checksum does not match")
        return self.data


def entries(archive: memoryview, budget: Budget) -> dict[str, Entry]:
    """All entries by name. Refuses compression, encryption, entries that share bytes, and sizes that lie."""
    count, offset = _directory(archive)
    found: dict[str, Entry] = {}
    spans: list[tuple[int, int]] = []
    for _ in range(count):
        budget.operate()
        name, entry, span, offset = _entry(archive, offset)
        if name in found:
            refuse(f"two zip entries named {name[:100]!r}")
        found[name] = entry
        spans.append(span)
    _check_apart(spans)
    return found


def _slice(archive: memoryview, offset: int, size: int) -> memoryview:
    if offset < 0 or size < 0 or offset + size > len(archive):
        refuse(f"a zip archive that points to byte {offset + size} of {len(archive)}")
    return archive[offset : offset + size]


def _directory(archive: memoryview) -> tuple[int, int]:
    """(number of entries, offset of the central directory)."""
    tail = bytes(archive[-(_END.size + 0xFFFF) :])
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or len(tail) - at < _END.size:
        refuse("a zip archive without its directory")
    _, _, _, _, count, _, offset, _ = _END.unpack_from(tail, at)
    if count == 0xFFFF or offset == _BIG:
        return _directory64(archive, len(archive) - len(tail) + at)
    return count, offset


def _directory64(archive: memoryview, end: int) -> tuple[int, int]:
    magic, _, where, _ = _LOCATOR.unpack(_slice(archive, end - _LOCATOR.size, _LOCATOR.size))
    if magic != b"PK\x06\x07":
        refuse("a zip archive without its 64-bit directory")
    fields = _END64.unpack(_slice(archive, where, _END64.size))
    if fields[0] != b"PK\x06\x06":
        refuse("a zip archive whose 64-bit directory is elsewhere")
    return fields[7], fields[9]


def _entry(archive: memoryview, offset: int) -> tuple[str, Entry, tuple[int, int], int]:
    """Name, entry, its span in the file, and the offset of the directory's next record."""
    fields = _CENTRAL.unpack(_slice(archive, offset, _CENTRAL.size))
    magic, _, _, flags, method, _, _, checksum, packed, size, named, extra, comment, _, _, _, start = fields
    if magic != b"PK\x01\x02":
        refuse("a zip directory that is broken")
    name = decode(bytes(_slice(archive, offset + _CENTRAL.size, named)))
    if _BIG in (packed, size, start):
        block = bytes(_slice(archive, offset + _CENTRAL.size + named, extra))
        size, packed, start = _sizes64(block, size, packed, start)
    if method != 0 or flags & 1 or packed != size:
        refuse(f"zip entry {name[:100]!r} is compressed or encrypted, which torch never does")
    data, begin = _local(archive, start, size)
    return name, Entry(data, checksum), (begin, begin + size), offset + _CENTRAL.size + named + extra + comment


def _sizes64(extra: bytes, *values: int) -> tuple[int, int, int]:
    """Size, packed size and offset with those that do not fit 32 bits taken from the ZIP64 extra field (APPNOTE 4.5.3)."""
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, at)
        if kind == 1:
            wide = [extra[at + 4 + 8 * i : at + 12 + 8 * i] for i in range(length // 8)]
            numbers = iter(int.from_bytes(part, "little") for part in wide)
            size, packed, start = (next(numbers, -1) if value == _BIG else value for value in values)
            return size, packed, start
        at += 4 + length
    refuse("a zip entry without its 64-bit sizes")


def _local(archive: memoryview, start: int, size: int) -> tuple[memoryview, int]:
    fields = _LOCAL.unpack(_slice(archive, start, _LOCAL.size))
    if fields[0] != MAGIC:
        refuse("a zip entry whose header is elsewhere")
    begin = start + _LOCAL.size + fields[9] + fields[10]
    return _slice(archive, begin, size), begin


def _check_apart(spans: list[tuple[int, int]]) -> None:
    spans = sorted(span for span in spans if span[0] != span[1])
    for (_, end), (begin, _) in pairwise(spans):
        if begin < end:
            refuse("zip entries that share their bytes")
