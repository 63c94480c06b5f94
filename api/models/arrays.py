"""Files of a few arrays, read as data: ``.npy``, ``.npz``, torch files and plain safetensors, told apart by their content.

Nothing is unpickled; sizes are checked before anything is allocated. Raises ``ConfigError`` throughout.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from api.errors import ConfigError
from api.models.base import Array
from api.models.formats import safetensors, torchfiles
from api.models.formats.files import mapped
from api.models.formats.ndarrays import KINDS, Ndarray
from api.models.formats.pickles import Budget
from api.models.formats.torchfiles import Tensor

MAX_BYTES = 64 << 20  # of all arrays of a file: a thousand directions for the largest networks
MAX_ARRAYS = 4096
NPY = b"\x93NUMPY"
HEADER = re.compile(rb"\{'descr': '([<>|=]?[a-z]\d)', 'fortran_order': (True|False), 'shape': \(([\d, ]*)\),? *\}\s*")


@dataclass(frozen=True)
class Bundle:
    """Arrays by name, and texts about them where the format has room for any."""

    arrays: Mapping[str, Array]
    metadata: Mapping[str, str] = field(default_factory=dict)


def read_arrays(path: Path) -> Bundle:
    """All arrays of the file. A file of one without a name gives it the name ""."""
    data = mapped(path)
    head = bytes(data[:16])
    try:
        if head.startswith(NPY):
            return Bundle({"": parse_npy(bytes(data[: MAX_BYTES + 4096]))})
        if torchfiles.is_legacy(head) or (head.startswith(b"PK") and b"data.pkl" in bytes(data[:256])):
            return Bundle(collect(torchfiles.load(data, Budget.of(len(data)))))
        if head.startswith(b"PK"):
            return Bundle(read_npz(data))
        if head[8:9] == b"{":
            return read_safetensors(path, data)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    raise ConfigError(f"{path}: neither .npy, .npz, a torch file nor safetensors; it begins with {head[:8]!r}")


def parse_npy(content: bytes) -> Array:
    """A ``.npy`` file of version 1 to 3 (NEP 1) with plain numbers."""
    wide = content[6:7] != b"\x01"
    start = 12 if wide else 10
    length = int.from_bytes(content[8:start], "little")
    found = HEADER.fullmatch(content[start : start + length]) if length <= 4096 else None
    if found is None or found[1].decode().lstrip("<>|=") not in KINDS:
        raise ConfigError("the .npy header is not that of an array of plain numbers")
    dtype = np.dtype(found[1].decode())
    shape = tuple(int(size) for size in found[3].decode().replace(",", " ").split()[:9])
    body = content[start + length :]
    if len(shape) > 8 or prod(shape) * dtype.itemsize != len(body):
        raise ConfigError(f"the .npy header tells of {dtype} {shape}, which {len(body)} bytes do not hold")
    return np.frombuffer(body, dtype).reshape(shape, order="F" if found[2] == b"True" else "C")


def read_npz(data: memoryview) -> dict[str, Array]:
    """The members of a zip archive of ``.npy`` files, compressed or not, unpacked up to ``MAX_BYTES`` together."""
    arrays: dict[str, Array] = {}
    left = MAX_BYTES
    try:
        with zipfile.ZipFile(io.BytesIO(data[: 2 * MAX_BYTES])) as archive:
            for member in archive.infolist()[:MAX_ARRAYS]:
                with archive.open(member) as file:
                    content = file.read(left + 1)
                left -= len(content)
                if left < 0:
                    raise ConfigError(f"its arrays are larger than {MAX_BYTES >> 20} MiB")
                arrays[member.filename.removesuffix(".npy")] = parse_npy(content)
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError, OSError, ValueError) as error:
        raise ConfigError(f"the .npz archive is damaged or of an unknown kind: {error}") from None
    return arrays


def collect(root: object) -> dict[str, Array]:
    """The tensors and arrays of nested dictionaries and lists by their paths, such as "age" or "age.0"; each container once."""
    found: dict[str, Array] = {}
    waiting, seen = [("", root)], {id(root)}
    for name, value in waiting:
        if isinstance(value, (Tensor, Ndarray)) and len(found) < MAX_ARRAYS:
            found[name] = numbers(name, value)
        items: Any = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, (list, tuple)) else ()
        for key, part in items:
            if isinstance(part, (Tensor, Ndarray)) or (isinstance(part, (dict, list, tuple)) and id(part) not in seen):
                seen.add(id(part))
                waiting.append((f"{name}.{key}"[-200:] if name else str(key)[:200], part))
    return found


def numbers(name: str, value: Tensor | Ndarray) -> Array:
    size = value.size if isinstance(value, Tensor) else value.array.size
    if 8 * size > MAX_BYTES:
        raise ConfigError(f"array {name!r} is larger than {MAX_BYTES >> 20} MiB")
    return value.array() if isinstance(value, Tensor) else value.array


def read_safetensors(path: Path, data: memoryview) -> Bundle:
    """Any safetensors file; its metadata is given on as it is."""
    length = safetensors.length_of(bytes(data[:8]))
    if not 2 <= length <= min(safetensors.MAX_HEADER, len(data) - 8) or len(data) > MAX_BYTES + length:
        raise ConfigError(f"the safetensors header tells of {length} bytes in a file of {len(data)}")
    try:
        header = json.loads(bytes(data[8 : 8 + length]))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"the safetensors header is not valid JSON: {error}") from None
    if not isinstance(header, dict) or len(header) > MAX_ARRAYS:
        raise ConfigError(f"the safetensors header is not an object of up to {MAX_ARRAYS} arrays")
    metadata = header.pop("__metadata__", {})
    texts = {str(key): value for key, value in metadata.items() if isinstance(value, str)} if isinstance(metadata, dict) else {}
    entries = {name: safetensors.entry_of(path, name, value) for name, value in header.items()}
    safetensors.check_cover(path, entries.values(), len(data) - 8 - length)
    content: Any = data
    return Bundle({name: np.array(safetensors.view(content, 8 + length, entry)) for name, entry in entries.items()}, texts)
