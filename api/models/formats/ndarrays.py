"""NumPy's own names in pickles: arrays, dtypes and scalars, rebuilt from their bytes."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from api.models.base import Array
from api.models.formats.pickles import Budget, Name, Names, Stub, refuse, table

KINDS = frozenset({"f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1"})


class Dtype(Stub):
    """``numpy.dtype(kind, align, copy)``, whose state tells the byte order."""

    __slots__ = ("kind", "order")

    def __init__(self, kind: str) -> None:
        self.kind, self.order = kind, "<"

    def build(self, state: object) -> None:
        match state:
            case (int(), "<" | ">" | "|" | "=" as order, None, None, None, *_):
                self.order = "<" if order == "=" else str(order)
            case _:
                refuse("an array of structures or objects")

    def numpy(self) -> np.dtype[np.generic]:
        return np.dtype(self.order + self.kind)


class Ndarray(Stub):
    """An array whose state gives shape, type and bytes; ``array`` is a view of those."""

    __slots__ = ("array",)

    def __init__(self) -> None:
        self.array: Array = np.zeros(0, np.float32)

    def build(self, state: object) -> None:
        match state:
            case (int(), tuple() as shape, Dtype() as dtype, bool() as fortran, memoryview() | bytes() as data):
                self.array = view(data, dtype.numpy(), shape, "F" if fortran else "C")
            case _:
                refuse("an array with an unexpected state")


def view(data: memoryview | bytes, dtype: np.dtype[np.generic], shape: tuple[object, ...], order: str = "C") -> Array:
    """``data`` as an array of exactly ``shape``; refused if the sizes differ, so that a shape that lies allocates nothing."""
    sizes = dimensions(shape)
    if math.prod(sizes) * dtype.itemsize != len(data):
        refuse(f"an array of shape {shape} and type {dtype} in {len(data)} bytes")
    array: Array = np.frombuffer(data, dtype)
    return array.reshape(sizes, order="F" if order == "F" else "C")


def dimensions(shape: Iterable[object]) -> tuple[int, ...]:
    """``shape`` if it is at most eight non-negative integers."""
    sizes = tuple(size for size in shape if isinstance(size, int) and 0 <= size < 1 << 40)
    if len(sizes) > 8 or len(sizes) != len(tuple(shape)):
        refuse("an array whose shape is not at most eight sizes")
    return sizes


def _dtype(*args: object) -> Dtype:
    match args:
        case (str() as kind, *_) if kind.lstrip("<>|=") in KINDS:
            return Dtype(kind.lstrip("<>|="))
    refuse("an array of something else than plain numbers")


def _scalar(*args: object) -> object:
    match args:
        case (Dtype() as dtype, memoryview() | bytes() as data):
            return view(data, dtype.numpy(), ()).item()
    refuse("a NumPy scalar with unexpected arguments")


def numpy_names(budget: Budget) -> Names:
    """The names that NumPy's pickles use, of NumPy 1 and 2."""

    def encode(*args: object) -> bytes:
        match args:
            case (str() as text, "latin1" | "latin-1"):
                budget.copy(len(text))
                try:
                    return text.encode("latin-1")
                except UnicodeEncodeError:
                    refuse("bytes written as text beyond Latin-1")
        refuse("_codecs.encode for something else than bytes written as text")

    def reconstruct(*args: object) -> Ndarray:
        match args:
            case (Name("numpy.ndarray"), tuple(), memoryview() | bytes()):
                return Ndarray()
        refuse("numpy reconstructs something else than an array")

    homes = ("numpy.core.multiarray", "numpy._core.multiarray")
    return table(
        Name("numpy.ndarray"),
        Name("numpy.dtype", _dtype),
        Name("_codecs.encode", encode),
        *(Name(f"{home}._reconstruct", reconstruct) for home in homes),
        *(Name(f"{home}.scalar", _scalar) for home in homes),
    )
