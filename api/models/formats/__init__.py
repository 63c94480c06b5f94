"""One module per checkpoint format: ``sniff(path, head)``, ``describe(path)`` and ``read(path)``. Files are data; nothing in them runs.

A format is recognised by the file's content, never by its name.
"""

from __future__ import annotations

import pkgutil
from importlib import import_module
from pathlib import Path
from typing import Protocol, cast

from api.conf import is_hub
from api.errors import ConfigError
from api.models.base import Checkpoint, Description

HEAD = 4096


class Format(Protocol):
    """What a module in this package offers. ``path`` may be a folder, whose ``head`` is empty."""

    @staticmethod
    def sniff(path: Path, head: bytes) -> bool:
        """Whether this module reads the file. Cheap; never raises for a file that is none of its own."""
        ...

    @staticmethod
    def describe(path: Path) -> Description:
        """What the header tells, without loading weights. Raises ``ConfigError``."""
        ...

    @staticmethod
    def read(path: Path) -> Checkpoint:
        """The whole content. Raises ``ConfigError``."""
        ...


def known() -> dict[str, Format]:
    """The formats of this package by name; modules without ``sniff`` are what several of them share."""
    names = sorted(info.name for info in pkgutil.iter_modules(__path__))
    modules = {name: import_module(f"{__name__}.{name}") for name in names}
    return {name: cast(Format, module) for name, module in modules.items() if hasattr(module, "sniff")}


def find(path: Path) -> Format:
    """The module that reads the checkpoint at ``path``. Raises ``ConfigError`` if there is none or no such file."""
    head, formats = peek(path), known()
    for module in formats.values():
        if module.sniff(path, head):
            return module
    begin = f"; it begins with {head[:8]!r}" if head else ""
    raise ConfigError(f"{path}: no known checkpoint format{begin}. Known: {', '.join(formats)}")


def peek(path: Path) -> bytes:
    """The first bytes of a file, none of a folder or of a name on the hub."""
    if path.is_dir() or is_hub(path):
        return b""
    if path.exists() and not path.is_file():
        raise ConfigError(f"{path}: is neither a file nor a folder")  # reading a pipe or a device could wait for ever
    try:
        with path.open("rb") as file:
            return file.read(HEAD)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
