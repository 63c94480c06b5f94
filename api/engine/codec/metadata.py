"""What a picture says of itself: that a model made it, in XMP, and its recipe, in Exif.

Sources: XMP specification part 1 (ISO 16684-1), IPTC photo metadata standard (digital source type), Exif 3.0 (CIPA DC-008), TIFF 6.0.
"""

from __future__ import annotations

import struct

SOURCE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
XMP = (
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" '
    f'Iptc4xmpExt:DigitalSourceType="{SOURCE}"/></rdf:RDF></x:xmpmeta><?xpacket end="r"?>'
).encode()

EXIF_PREFIX = b"Exif\0\0"
EXIF_POINTER, USER_COMMENT, ORIENTATION = 0x8769, 0x9286, 0x0112
SHORT, LONG, UNDEFINED = 3, 4, 7
MOST_ENTRIES = 512


def exif_comment(text: str) -> bytes:
    """An Exif block whose one entry is the user comment: big-endian TIFF, the text in UTF-16."""
    comment = b"UNICODE\0" + text.encode("utf-16-be")
    pointer = struct.pack(">HHHIII", 1, EXIF_POINTER, LONG, 1, 26, 0)
    entry = struct.pack(">HHHIII", 1, USER_COMMENT, UNDEFINED, len(comment), 44, 0)
    return b"".join((EXIF_PREFIX, b"MM\0*\0\0\0\x08", pointer, entry, comment))


def read_comment(block: bytes) -> str | None:
    """The user comment of an Exif block, if it has one that can be read."""
    tiff = Tiff(block)
    inner = tiff.number(tiff.first, EXIF_POINTER)
    content = tiff.content(inner, USER_COMMENT) if inner is not None else None
    if content is None:
        return None
    kind, text = content[:8], content[8:]
    encoding = {b"UNICODE\0": "utf-16-be" if tiff.order == ">" else "utf-16-le", b"ASCII\0\0\0": "utf-8"}.get(kind)
    return text.decode(encoding, "replace").rstrip("\0") if encoding else None


def read_orientation(block: bytes) -> int:
    """How the picture is to be turned, 1 … 8 as in Exif; 1 (not at all) if nothing sensible is told."""
    tiff = Tiff(block)
    value = tiff.number(tiff.first, ORIENTATION)
    return value if value is not None and 1 <= value <= 8 else 1


class Tiff:
    """A TIFF directory from anywhere: every offset is checked, nothing is followed twice."""

    def __init__(self, block: bytes) -> None:
        self.data = block.removeprefix(EXIF_PREFIX)
        self.order = ">" if self.data[:4] == b"MM\0*" else "<"
        valid = self.data[:4] in (b"MM\0*", b"II*\0")
        self.first = (self.unpack("I", 4) or 0) if valid else 0

    def unpack(self, form: str, place: int) -> int | None:
        form = self.order + form
        if place < 0 or place + struct.calcsize(form) > len(self.data):
            return None
        value: int = struct.unpack_from(form, self.data, place)[0]
        return value

    def entry(self, directory: int, tag: int) -> int | None:
        """Where a tag's entry begins in a directory."""
        if directory < 8:
            return None
        count = min(self.unpack("H", directory) or 0, MOST_ENTRIES)
        places = (directory + 2 + 12 * index for index in range(count))
        return next((place for place in places if self.unpack("H", place) == tag), None)

    def number(self, directory: int, tag: int) -> int | None:
        place = self.entry(directory, tag)
        if place is None:
            return None
        return self.unpack("H" if self.unpack("H", place + 2) == SHORT else "I", place + 8)

    def content(self, directory: int, tag: int) -> bytes | None:
        """The bytes that an entry of type UNDEFINED, which all our readers write, points to."""
        place = self.entry(directory, tag)
        if place is None or self.unpack("H", place + 2) != UNDEFINED:
            return None
        size, start = self.unpack("I", place + 4), self.unpack("I", place + 8)
        if size is None or start is None or size <= 8 or start + size > len(self.data):
            return None
        return self.data[start : start + size]
