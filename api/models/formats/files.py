"""A checkpoint's bytes, mapped rather than read."""

from __future__ import annotations

import mmap
from pathlib import Path

from api.errors import ConfigError
from api.models.formats.pickles import GROWTH, refuse


def mapped(path: Path) -> memoryview:
    """The file's bytes as a read-only view; pages are read when touched. Raises ``ConfigError``."""
    try:
        with path.open("rb") as file:
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except (OSError, ValueError) as error:  # an empty file cannot be mapped
        raise ConfigError(f"{path}: cannot be read: {error}") from None


def span(path: Path, size: int = 1 << 16) -> bytes:
    """The first ``size`` bytes, for telling formats apart."""
    with path.open("rb") as file:
        return file.read(size)


def check_growth(count: int, size: int) -> None:
    """Refuse a file of ``size`` bytes whose arrays unfold to ``count`` numbers, much more memory, by naming the same ones many times."""
    if 4 * count > GROWTH * size + (1 << 20):
        refuse(f"its {count:,} parameters do not fit a file of {size:,} bytes")
