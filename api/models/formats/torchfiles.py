"""Files of ``torch.save`` as data: the legacy stream and the zip archive, with tensors as NumPy arrays.

Both are a pickle whose storages are persistent ids, and the storages' raw bytes beside it; torch's ``torch/serialization.py`` is their
specification. Nothing of torch is imported.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from api.models.base import Array
from api.models.formats import archives
from api.models.formats.ndarrays import dimensions, numpy_names
from api.models.formats.pickles import COMMON, Budget, Machine, Name, Names, Stub, refuse, table

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001

STORAGES = {
    "FloatStorage": "<f4",
    "DoubleStorage": "<f8",
    "HalfStorage": "<f2",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "|i1",
    "ByteStorage": "|u1",
    "BoolStorage": "|b1",
}


class Storage(Stub):
    """A run of numbers. ``data`` is set when its bytes have been found."""

    __slots__ = ("data", "kind", "length")

    def __init__(self, kind: str, length: int) -> None:
        self.kind, self.length = kind, length
        self.data: memoryview | None = None

    @property
    def itemsize(self) -> int:
        return 2 if self.kind == "bfloat16" else np.dtype(self.kind).itemsize

    def numbers(self) -> Array:
        """All numbers as a flat view."""
        if self.data is None:
            refuse("a tensor whose numbers are not in the file")
        return np.frombuffer(self.data, "<u2" if self.kind == "bfloat16" else self.kind)


class Tensor(Stub):
    """A strided view of a storage, checked when it is made."""

    __slots__ = ("offset", "shape", "storage", "strides")

    def __init__(self, storage: Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> None:
        self.storage, self.offset, self.shape, self.strides = storage, offset, shape, strides
        self.check()

    def check(self) -> None:
        """Refuse a view that leaves its storage or has more elements than it (which would unfold to more than the file holds)."""
        count = self.size
        last = sum((size - 1) * stride for size, stride in zip(self.shape, self.strides, strict=True)) if count else 0
        if count and (self.offset + last >= self.storage.length or count > self.storage.length):
            refuse(f"a tensor of shape {self.shape} in a storage of {self.storage.length} numbers")

    @property
    def size(self) -> int:
        return int(np.prod(self.shape, dtype=object)) if self.shape else 1

    def array(self) -> Array:
        """A copy in C order; bfloat16 becomes float32."""
        numbers = self.storage.numbers()
        steps = tuple(stride * numbers.itemsize for stride in self.strides)
        array = np.lib.stride_tricks.as_strided(numbers[self.offset :], self.shape, steps).copy()
        if self.storage.kind != "bfloat16":
            return array
        return (array.astype(np.uint32) << 16).view(np.float32)


def _rebuild_tensor(*args: object) -> Tensor:
    match args:
        case (Storage() as storage, int() as offset, tuple() as shape, tuple() as strides, *_) if 0 <= offset < 1 << 40:
            if len(shape) != len(strides):
                refuse("a tensor with as many strides as it has no sizes")
            return Tensor(storage, offset, dimensions(shape), dimensions(strides))
    refuse("a tensor with unexpected arguments")


def _rebuild_parameter(*args: object) -> Tensor:
    match args:
        case (Tensor() as tensor, *_):
            return tensor
    refuse("a parameter of something else than a tensor")


def _size(*args: object) -> tuple[int, ...]:
    match args:
        case (tuple() | list() as sizes,):
            return dimensions(sizes)
    refuse("a torch.Size with unexpected arguments")


def _namespace(*args: object) -> dict[object, object]:
    if args:
        refuse("an argparse.Namespace with arguments")
    return {}


TORCH = table(
    Name("torch._utils._rebuild_tensor_v2", _rebuild_tensor),
    Name("torch._utils._rebuild_tensor", _rebuild_tensor),
    Name("torch._utils._rebuild_parameter", _rebuild_parameter),
    Name("torch.Size", _size),
    Name("torch.device", lambda *args: None),
    Name("argparse.Namespace", _namespace, _namespace),
    *(Name(f"torch.{name}") for name in STORAGES),
)
"""Names in any pickle with tensors. ``argparse.Namespace`` holds the training options of third-party checkpoints."""


def stream_names(budget: Budget) -> Names:
    """The names of a torch stream. ``_load_from_bytes`` is not among them: streams are nested once, not for ever."""
    return {**COMMON, **numpy_names(budget), **TORCH}


def nested_names(budget: Budget) -> Names:
    """Names for a plain pickle in which each storage is a whole torch stream, as ``torch.storage._load_from_bytes`` takes it."""

    def load_from_bytes(*args: object) -> Storage:
        match args:
            case (memoryview() | bytes() as data,):
                budget.copy(len(data))
                stored = load(memoryview(data), budget)
                if isinstance(stored, Storage):
                    return stored
        refuse("a nested torch stream that holds something else than a storage")

    return {**stream_names(budget), **table(Name("torch.storage._load_from_bytes", load_from_bytes))}


class Storages:
    """The persistent ids of one stream, each made once."""

    def __init__(self) -> None:
        self.found: dict[str, Storage] = {}

    def __call__(self, identity: object) -> Storage:
        match identity:
            case ("storage", Name(path), str() as key, str(), int() as length) | (
                "storage",
                Name(path),
                str() as key,
                str(),
                int() as length,
                None,
            ) if path.removeprefix("torch.") in STORAGES and 0 <= length < 1 << 40:
                return self.found.setdefault(key, Storage(STORAGES[path.removeprefix("torch.")], length))
        refuse("a persistent id that is not a storage of plain numbers")


def load(data: memoryview, budget: Budget) -> object:
    """What ``torch.load`` would give, with ``Tensor`` and ``Storage`` stubs. Raises ``ConfigError`` for whatever is not data."""
    if bytes(data[:4]) == archives.MAGIC:
        return _load_zip(data, budget)
    return _load_legacy(data, budget)


def is_legacy(head: bytes) -> bool:
    """Whether a file that starts with ``head`` is a legacy torch stream: protocol 2, then the magic number."""
    return head[:3] == b"\x80\x02\x8a" and head[4:14] == LEGACY_MAGIC.to_bytes(10, "little")


def _load_zip(data: memoryview, budget: Budget) -> object:
    found = archives.entries(data, budget)
    roots = [name.removesuffix("data.pkl") for name in found if name.count("/") <= 1 and name.endswith("data.pkl")]
    if len(roots) != 1:
        refuse("a zip archive that is not a torch file: it has no single data.pkl")
    order = found.get(roots[0] + "byteorder")
    if order is not None and bytes(order.data) != b"little":
        refuse("a torch file in big-endian byte order")
    storages = Storages()
    pickle = found[roots[0] + "data.pkl"].checked()
    value = Machine(data=pickle, names=stream_names(budget), budget=budget, persistent=storages).run()
    for key, storage in storages.found.items():
        entry = found.get(f"{roots[0]}data/{key}")
        if entry is None or len(entry.data) != storage.length * storage.itemsize:
            refuse(f"storage {key[:40]!r} of {storage.length} numbers is not in the archive in that size")
        storage.data = entry.data
    return value


def _load_legacy(data: memoryview, budget: Budget) -> object:
    machine = Machine(data=data, names={}, budget=budget)
    if machine.run() != LEGACY_MAGIC or machine.run() != _LEGACY_PROTOCOL:
        refuse("a torch stream with another magic number or protocol")
    system = machine.run()
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        refuse("a torch stream in big-endian byte order")
    storages = Storages()
    body = Machine(data=data, names=stream_names(budget), budget=budget, persistent=storages, position=machine.position)
    value = body.run()
    keys = Machine(data=data, names={}, budget=budget, position=body.position)
    _fill(storages, keys.run(), keys)
    return value


def _fill(storages: Storages, keys: object, machine: Machine) -> None:
    """Give each storage its bytes: for each key in turn a count of 64 bits, then the numbers."""
    if not isinstance(keys, list):
        refuse("a torch stream without its list of storages")
    for key in keys:
        storage = storages.found.get(key) if isinstance(key, str) else None
        count = machine.number("<q")
        if storage is None or count != storage.length:
            refuse("a torch stream whose storages differ from their list")
        storage.data = machine.take(count * storage.itemsize)


def floats(tensors: Iterable[tuple[str, object]]) -> dict[str, Array]:
    """Named stubs as arrays: what is half or double becomes float32. Refuses what is not a tensor."""
    made: dict[str, Array] = {}
    for name, value in tensors:
        if not isinstance(value, Tensor):
            refuse(f"{name[:100]!r} is not a tensor")
        array = value.array()
        made[name] = array.astype(np.float32) if array.dtype.kind == "f" else array
    return made
