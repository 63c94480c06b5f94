"""Pickles written opcode by opcode, as no pickler would write them."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Callable

import numpy as np

PERSISTENT = "torch_utils.persistence _reconstruct_persistent_obj"
LEGACY = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19." + b"\x80\x02M\xe9\x03." + b"\x80\x02}X\r\x00\x00\x00little_endian\x88s."
STOP = b"."


def text(value: str) -> bytes:
    raw = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(raw)) + raw


def blob(value: bytes) -> bytes:
    return b"B" + struct.pack("<I", len(value)) + value


def number(value: int) -> bytes:
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def items(*parts: bytes) -> bytes:
    """A tuple of what the parts push."""
    return b"(" + b"".join(parts) + b"t"


def mapping(**parts: bytes) -> bytes:
    return b"}(" + b"".join(text(name) + part for name, part in parts.items()) + b"u"


def name(path: str) -> bytes:
    """GLOBAL with "module name"."""
    return b"c" + path.replace(" ", "\n").encode() + b"\n"


def stacked(path: str) -> bytes:
    module, _, leaf = path.partition(" ")
    return text(module) + text(leaf) + b"\x93"


def call(path: str, *parts: bytes) -> bytes:
    return name(path) + items(*parts) + b"R"


def pickle(body: bytes, protocol: int = 2) -> bytes:
    """A pickle that a format recognises as its own: the name that NVIDIA's files have, pushed and dropped, and then the body."""
    return b"\x80" + bytes([protocol]) + text(PERSISTENT.partition(" ")[2]) + b"0" + body + STOP


def module(body: bytes = b"", *, kind: str = "Generator", children: bytes = b"}", parameters: bytes = b"}") -> bytes:
    state = b"}(" + text("_modules") + children + text("_parameters") + parameters + text("_buffers") + b"}" + body + b"u"
    meta = mapping(type=text("class"), class_name=text(kind), module_src=text("raise SystemExit"), state=state)
    return call(PERSISTENT, meta)


def root(generator: bytes) -> bytes:
    return pickle(mapping(G_ema=generator))


def legacy(body: bytes, keys: bytes = b"]", tail: bytes = b"") -> bytes:
    """A stream of torch's older layout with the given object, list of storages, and bytes behind."""
    return LEGACY + b"\x80\x02" + body + STOP + b"\x80\x02" + keys + STOP + tail


def storage(count: int = 4, kind: str = "torch FloatStorage", key: str = "0") -> bytes:
    return items(text("storage"), name(kind), text(key), text("cpu"), number(count)) + b"Q"


def floats(count: int = 4, told: int | None = None, size: int | None = None) -> bytes:
    """A nested stream with ``count`` float32; ``told`` and ``size`` are what it claims instead."""
    raw = np.arange(count, dtype="<f4").tobytes()
    tail = struct.pack("<q", count if size is None else size) + raw
    return legacy(storage(count if told is None else told), b"](" + text("0") + b"e", tail)


def tensor(shape: tuple[int, ...], strides: tuple[int, ...], stream: bytes, offset: int = 0) -> bytes:
    source = call("torch.storage _load_from_bytes", blob(stream))
    sizes, steps = items(*map(number, shape)), items(*map(number, strides))
    return call("torch._utils _rebuild_tensor_v2", source, number(offset), sizes, steps, b"\x89", b"}")


def archive(files: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    """A zip archive as torch writes it."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        for path, content in files.items():
            file.writestr(f"archive/{path}", content)
    return buffer.getvalue()


def patched(content: bytes, signature: bytes, offset: int, value: bytes) -> bytes:
    """The archive with bytes replaced at ``offset`` of the last record that starts with ``signature``."""
    at = content.rindex(signature) + offset
    return content[:at] + value + content[at + len(value) :]


def repeated(part: bytes, count: int, after: Callable[[int], bytes] | None = None) -> bytes:
    return b"".join(part + (after(i) if after else b"") for i in range(count))
