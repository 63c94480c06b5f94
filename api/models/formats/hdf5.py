"""HDF5 checkpoints of Precure StyleGAN ADA: the architecture in attributes of the root, one dataset per parameter.

HDF5 can do much that a checkpoint does not need and that reaches outside the file or runs code: links and raw data in other files, virtual
datasets, filters loaded as plugins. All that is refused, and shapes are compared with the architecture before anything is allocated.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from api.errors import ConfigError
from api.models.base import Array, Checkpoint, Description
from api.models.formats.confinement import confined

SIGNATURE = b"\x89HDF\r\n\x1a\n"
BOUNDS = {
    "size": (1, 8192),
    "depth": (1, 64),
    "levels": (1, 11),
    "first_channels": (1, 8192),
    "last_channels": (1, 8192),
    "categories": (0, 10_000),
}
MAX_PARAMETERS = 1 << 28  # a gibibyte of float32, ten times the largest of these networks
MAX_LABEL = 1024
FILTERS = {h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32}  # built in; any other is a plugin
FAULTS = (OSError, RuntimeError, ValueError, KeyError, TypeError, OverflowError, MemoryError)  # what h5py raises for a damaged file

Layout = Mapping[str, tuple[str, tuple[int, ...]]]


def sniff(path: Path, head: bytes) -> bool:
    return head.startswith(SIGNATURE)


def describe(path: Path) -> Description:
    """What the attributes tell. Raises ``ConfigError``."""
    return confined(__name__, "read_header", path).description


def read(path: Path) -> Checkpoint:
    """All parameters as float32 under the names of ``api.models.nets.precure``. Raises ``ConfigError``."""
    return confined(__name__, "read_here", path)


def read_header(path: Path) -> Checkpoint:
    """``describe`` for the confined process, with nothing but the description."""
    with opened(path) as file:
        return Checkpoint(description=description_of(path, file), tensors={})


def read_here(path: Path) -> Checkpoint:
    """``read`` for the confined process: damaged files may keep the HDF5 library busy for ever."""
    with opened(path) as file:
        description = description_of(path, file)
        places = layout(description.arguments)
        return Checkpoint(
            description=description,
            tensors={name: read_array(file, path, where, shape) for name, (where, shape) in places.items()},
        )


def write(path: Path, checkpoint: Checkpoint) -> None:
    """Writes what ``read`` reads."""
    description = checkpoint.description
    count = description.arguments["categories"]
    with h5py.File(path, "w") as file:
        file.attrs.update({name: np.int32(description.arguments[name]) for name in BOUNDS})
        file.attrs["labels"] = list(description.labels or (f"cat{i}" for i in range(count)))
        for name, (where, _) in layout(description.arguments).items():
            file.create_dataset(where, data=np.asarray(checkpoint.tensors[name], np.float32))


@contextmanager
def opened(path: Path) -> Iterator[h5py.File]:
    """The file, with everything that the HDF5 library has to say against it turned into ``ConfigError``."""
    try:
        with h5py.File(path, "r", locking=False) as file:
            yield file
    except FAULTS as error:
        raise ConfigError(f"{path}: the HDF5 file cannot be read: {error}") from None


def description_of(path: Path, file: h5py.File) -> Description:
    arguments = {name: integer(path, file, name) for name in BOUNDS}
    places = layout(arguments)
    parameters = sum(prod(shape) for _, shape in places.values())
    if parameters > MAX_PARAMETERS:
        raise ConfigError(f"{path}: the attributes describe {parameters:,} parameters; {MAX_PARAMETERS:,} is the most that is read")
    labels = read_labels(path, file, arguments["categories"])
    return Description(format="hdf5", family="precure", arguments=arguments, labels=labels, tensors=len(places), parameters=parameters)


def integer(path: Path, file: h5py.File, name: str) -> int:
    low, high = BOUNDS[name]
    if name not in file.attrs:
        raise ConfigError(f"{path}: attribute {name!r} is missing; is this a Precure StyleGAN ADA checkpoint?")
    kind = file.attrs.get_id(name)
    if kind.dtype.kind not in "iu" or kind.shape not in ((), (1,)):
        raise ConfigError(f"{path}: attribute {name!r} is {kind.dtype} {kind.shape}; an integer is expected")
    value = int(np.asarray(file.attrs[name]).item())
    if not low <= value <= high:
        raise ConfigError(f"{path}: attribute {name!r} is {value}; {low} to {high} is expected")
    return value


def read_labels(path: Path, file: h5py.File, categories: int) -> tuple[str, ...] | None:
    """Class names of a conditional network, ``None`` of another one (which has one class, without a meaning)."""
    if categories < 2:
        return None
    kind = file.attrs.get_id("labels") if "labels" in file.attrs else None
    if kind is None or kind.shape != (categories,) or not (kind.dtype.kind == "S" or h5py.check_string_dtype(kind.dtype)):
        found = "is missing" if kind is None else f"is {kind.dtype} {kind.shape}"
        raise ConfigError(f"{path}: attribute 'labels' {found}; {categories} texts are expected")
    if kind.dtype.itemsize > MAX_LABEL:
        raise ConfigError(f"{path}: attribute 'labels' holds texts of {kind.dtype.itemsize} bytes; {MAX_LABEL} is the most")
    labels = tuple(value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value) for value in file.attrs["labels"])
    if max(map(len, labels)) > MAX_LABEL:
        raise ConfigError(f"{path}: attribute 'labels' holds a text longer than {MAX_LABEL} characters")
    return labels


def read_array(file: h5py.File, path: Path, where: str, shape: tuple[int, ...]) -> Array:
    dataset = follow(file, path, where)
    check_storage(path, where, dataset)
    if dataset.dtype.kind != "f" or dataset.dtype.itemsize not in (2, 4, 8):
        raise ConfigError(f"{path}: parameter {where!r} is of type {dataset.dtype}; float32 is expected")
    if dataset.shape != shape:
        raise ConfigError(f"{path}: parameter {where!r} has shape {dataset.shape}; by the attributes it is {shape}")
    if dataset.chunks and prod(dataset.chunks) > 4 * prod(shape) + 65536:
        raise ConfigError(f"{path}: parameter {where!r} is stored in chunks of {dataset.chunks}, far larger than itself")
    array = np.empty(shape, np.float32)
    dataset.read_direct(array)
    return array


def follow(file: h5py.File, path: Path, where: str) -> h5py.Dataset:
    """The dataset at ``where``, through hard links alone: other links may lead out of the file."""
    node: Any = file
    for part in where.split("/"):
        link = node.get(part, getlink=True) if isinstance(node, h5py.Group) else None
        if link is None:
            raise ConfigError(f"{path}: parameter {where!r} is missing")
        if type(link) is not h5py.HardLink:
            raise ConfigError(f"{path}: parameter {where!r} is reached by a {type(link).__name__}, which is not followed")
        node = node[part]
    if not isinstance(node, h5py.Dataset):
        raise ConfigError(f"{path}: parameter {where!r} is a {type(node).__name__}; a dataset is expected")
    return node


def check_storage(path: Path, where: str, dataset: h5py.Dataset) -> None:
    properties = dataset.id.get_create_plist()
    filters = {properties.get_filter(i)[0] for i in range(properties.get_nfilters())}
    if dataset.is_virtual or properties.get_external_count():
        raise ConfigError(f"{path}: parameter {where!r} keeps its data outside the file, which is not read")
    if filters - FILTERS:
        raise ConfigError(f"{path}: parameter {where!r} is compressed with unknown filters {sorted(filters - FILTERS)}; gzip is known")


def layout(arguments: Mapping[str, int]) -> Layout:
    """Where each parameter of our network stands in the file, and its shape there and here."""
    size, depth, levels = arguments["size"], arguments["depth"], arguments["levels"]
    conditional = arguments["categories"] > 1
    places = linear("mapping.embedding", "embedder", arguments["categories"], size) if conditional else {}
    for i in range(depth):
        places |= linear(f"mapping.layers.{i}", f"mapper/mlp/{i}", size * 2 if conditional and i == 0 else size, size)
    first, last = arguments["first_channels"], arguments["last_channels"]
    widths = [first, *(min(first, last << (levels - i)) for i in range(1, levels)), last]
    places["synthesis.const"] = ("synthesizer/init/const/c", (first, 4, 4))
    for i in range(levels):
        places |= level(i, size, widths[i], widths[i + 1])
    return places


def level(i: int, size: int, fan_in: int, fan_out: int) -> dict[str, tuple[str, tuple[int, ...]]]:
    """One resolution: its layers (one in the first, two in the others) and its way to RGB, each with a style of its own."""
    ours, theirs = f"synthesis.levels.{i}", f"synthesizer/skips/{i - 1}" if i else "synthesizer/init"
    places: dict[str, tuple[str, tuple[int, ...]]] = {}
    numbers = ("1", "2") if i else ("",)
    for k, number in enumerate(numbers):
        width = fan_out if k else fan_in
        places |= conv(f"{ours}.layers.{k}.conv", f"{theirs}/wmconv{number}", f"{theirs}/style{k + 1}", size, (fan_out, width, 3, 3))
        places[f"{ours}.layers.{k}.strength"] = (f"{theirs}/noise{number}/s", (1,))
    return places | conv(f"{ours}.rgb", f"{theirs}/torgb/wmconv", f"{theirs}/style{len(numbers) + 1}", size, (3, fan_out, 1, 1))


def conv(ours: str, theirs: str, style: str, size: int, shape: tuple[int, ...]) -> dict[str, tuple[str, tuple[int, ...]]]:
    places: dict[str, tuple[str, tuple[int, ...]]] = {f"{ours}.weight": (f"{theirs}/w", shape), f"{ours}.bias": (f"{theirs}/b", shape[:1])}
    return places | linear(f"{ours}.affine", f"{style}/linear", size, shape[1])


def linear(ours: str, theirs: str, fan_in: int, fan_out: int) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {f"{ours}.weight": (f"{theirs}/w", (fan_out, fan_in)), f"{ours}.bias": (f"{theirs}/b", (fan_out,))}
