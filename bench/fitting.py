"""A configuration for a bench: another TOML's models, with what the bench wants of the server, in a folder of its own."""

from __future__ import annotations

import tomllib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from tests.serving import write_config


def fit(config: Path, folder: Path, models: Collection[str] | None = None, server: Mapping[str, Any] | None = None, **root: Any) -> Path:
    """The path of a new TOML in ``folder``, with all models of ``config`` or those named."""
    known = tomllib.loads(config.read_text())["models"]
    chosen = {name: settle(model, config.parent) for name, model in known.items() if models is None or name in models}
    return write_config(folder, chosen, server, **root)


def settle(model: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """A model's section with paths that hold wherever the TOML lies."""
    base = folder if model.get("relative") else Path()
    directions = {name: {**one, "file": place(base, one["file"])} for name, one in model.get("directions", {}).items()}
    return {**model, "file": place(base, model["file"]), "relative": False, **({"directions": directions} if directions else {})}


def place(base: Path, file: str) -> str:
    return file if file.startswith("hub:") else str((base / file).resolve())
