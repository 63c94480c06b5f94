"""This project's own format, for every family: weights in a safetensors file whose header also tells the architecture.

The layout is that of https://huggingface.co/docs/safetensors: eight bytes with the header's length, the header in JSON, the arrays. The
header's ``__metadata__`` (texts only, as the format demands) holds ``format`` = "stylegan-fastapi", ``version`` = "1", ``family``, and as
JSON ``arguments`` (how the family's network is built) and ``labels`` (class names or null). Beside the network's parameters a file
may hold arrays that save the family work, such as ``mean_w``; a family says which it looks for.
"""

from __future__ import annotations

import json
import mmap
import os
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from api.errors import ConfigError
from api.models.base import Array, Checkpoint, Description, count_parameters

FORMAT, VERSION = "stylegan-fastapi", "1"
MAX_HEADER = 16 << 20
MAX_TENSORS, MAX_AXES = 100_000, 8
DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4", "U8": "u1", "BOOL": "?"}
TAKEN = {np.dtype(code): name for name, code in DTYPES.items() if name != "BF16"}


@dataclass(frozen=True)
class Entry:
    """One array as the header tells it; ``start`` counts from the end of the header."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class Header:
    metadata: Mapping[str, str]
    entries: Mapping[str, Entry]
    begin: int  # where the arrays begin in the file


def sniff(path: Path, head: bytes) -> bool:
    """Only our own files: other safetensors files hold weights of we do not know what."""
    if head[8:9] != b"{":
        return False
    with path.open("rb") as file:
        file.seek(8)
        return f'"{FORMAT}"'.encode() in file.read(min(length_of(head), MAX_HEADER))


def describe(path: Path) -> Description:
    """What the header tells. Raises ``ConfigError``."""
    return description_of(path, read_header(path))


def read(path: Path) -> Checkpoint:
    """The arrays, mapped from the file and read-only (bfloat16 as float32). Raises ``ConfigError``."""
    header = read_header(path)
    with path.open("rb") as file:
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    tensors = {name: view(content, header.begin, entry) for name, entry in header.entries.items()}
    return Checkpoint(description=description_of(path, header), tensors=tensors)


def write(path: Path, checkpoint: Checkpoint, progress: Callable[[Iterable[Array]], Iterable[Array]] = iter) -> None:
    """Writes the checkpoint beside ``path`` and moves it there, so that no reader sees half a file; ``progress`` sees each array pass."""
    arrays = {name: packed(name, array) for name, array in checkpoint.tensors.items()}
    header = header_bytes(checkpoint.description, arrays)
    draft = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with draft.open("wb") as file:
            file.write(struct.pack("<Q", len(header)) + header)
            for array in progress(arrays.values()):
                file.write(array.tobytes())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def packed(name: str, array: Array) -> Array:
    array = np.ascontiguousarray(array).reshape(np.shape(array))  # the former makes a scalar one-dimensional
    array = array.astype(array.dtype.newbyteorder("<"), copy=False)
    if array.dtype not in TAKEN:
        raise ConfigError(f"array {name!r} of type {array.dtype} cannot be written; float, int64, int32, uint8 and bool can")
    return array


def header_bytes(description: Description, arrays: Mapping[str, Array]) -> bytes:
    metadata = {
        "format": FORMAT,
        "version": VERSION,
        "family": description.family,
        "arguments": json.dumps(dict(description.arguments), sort_keys=True),
        "labels": json.dumps(description.labels),
    }
    header: dict[str, Any] = {"__metadata__": metadata}
    start = 0
    for name, array in arrays.items():
        header[name] = {"dtype": TAKEN[array.dtype], "shape": list(array.shape), "data_offsets": [start, start + array.nbytes]}
        start += array.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    return text + b" " * (-len(text) % 8)  # the arrays then begin aligned


def read_header(path: Path) -> Header:
    """The header, checked against the file's size before anything is allocated for it. Raises ``ConfigError``."""
    try:
        with path.open("rb") as file:
            size, head = os.fstat(file.fileno()).st_size, file.read(8)
            length = length_of(head)
            if not 2 <= length <= min(MAX_HEADER, size - 8):
                raise ConfigError(f"{path}: not a whole safetensors file: a header of {length} bytes in a file of {size}")
            header = json.loads(file.read(length))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: the safetensors header is not valid JSON: {error}") from None
    return check_header(path, header, 8 + length, size)


def length_of(head: bytes) -> int:
    return int.from_bytes(head[:8], "little")


def check_header(path: Path, header: Any, begin: int, size: int) -> Header:
    if not isinstance(header, dict) or not 1 < len(header) <= MAX_TENSORS:
        raise ConfigError(f"{path}: the safetensors header is no object of 1 to {MAX_TENSORS} arrays with __metadata__")
    metadata = header.pop("__metadata__", None)
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ConfigError(f"{path}: the safetensors header has no __metadata__ of texts")
    if (metadata.get("format"), metadata.get("version")) != (FORMAT, VERSION):
        found = f"{metadata.get('format')!r} version {metadata.get('version')!r}"
        raise ConfigError(f"{path}: the metadata says format {found}; {FORMAT!r} version {VERSION!r} is read here")
    entries = {name: entry_of(path, name, value) for name, value in header.items()}
    check_cover(path, entries.values(), size - begin)
    return Header(metadata, entries, begin)


def entry_of(path: Path, name: str, value: Any) -> Entry:
    try:
        dtype, shape, (start, end) = value["dtype"], tuple(value["shape"]), value["data_offsets"]
        if not all(type(number) is int and number >= 0 for number in (*shape, start, end)) or len(shape) > MAX_AXES:
            raise ValueError
        if prod(shape) * np.dtype(DTYPES[dtype]).itemsize != end - start:
            raise ValueError
    except (KeyError, TypeError, ValueError):
        raise ConfigError(f"{path}: the header's entry for array {name[:80]!r} is not sound: {str(value)[:200]}") from None
    return Entry(dtype, shape, start, end)


def check_cover(path: Path, entries: Iterable[Entry], size: int) -> None:
    """The arrays must fill the rest of the file without gap or overlap, as the format demands."""
    position = 0
    for entry in sorted(entries, key=lambda entry: (entry.start, entry.end)):
        if entry.start != position:
            raise ConfigError(f"{path}: the arrays have a gap or overlap at byte {position} of the data")
        position = entry.end
    if position != size:
        raise ConfigError(f"{path}: the header tells of {position} bytes of arrays and the file has {size}; it may be cut short")


def view(content: mmap.mmap, begin: int, entry: Entry) -> Array:
    array = np.frombuffer(content, DTYPES[entry.dtype], prod(entry.shape), begin + entry.start).reshape(entry.shape)
    if entry.dtype == "BF16":  # the upper half of a float32
        return (array.astype("<u4") << 16).view("<f4")
    return array


def description_of(path: Path, header: Header) -> Description:
    try:
        arguments, labels = (json.loads(header.metadata[key]) for key in ("arguments", "labels"))
        if not isinstance(arguments, dict) or not (labels is None or all(isinstance(label, str) for label in labels)):
            raise ValueError("arguments must be an object, labels a list of texts or null")
        family = header.metadata["family"]
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: the metadata does not tell the architecture: {error!r}") from None
    return Description(
        format="safetensors",
        family=family,
        arguments=arguments,
        labels=None if labels is None else tuple(labels),
        tensors=len(header.entries),
        parameters=count_parameters({name: entry.shape for name, entry in header.entries.items()}),
    )
