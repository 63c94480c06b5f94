"""Pictures of ours that come back as files: rebuilt from their pixels and the recipe in them, so that nothing else of the file is kept."""

from __future__ import annotations

import json
from typing import Any

from api.engine.codec import Encoding, decode_picture, encode, read_recipe
from api.engine.wire import Picture
from api.errors import BadInput, TooLarge

SEEDS = 2**32
LONGEST = 1 << 16
"""Bytes of a recipe."""


def rebuild(data: bytes, max_pixels: int) -> tuple[Picture, dict[str, Any]]:
    """The picture and its recipe; a file of ours comes out as it went in. Raises ``BadInput``, ``Undecodable``, ``TooLarge``."""
    pixels = decode_picture(data, max_pixels=max_pixels, formats=("PNG",))
    recipe = {key: harmless(value) for key, value in (read_recipe(data) or {}).items()}
    check(recipe)
    height, width = pixels.shape[:2]
    label = recipe.get("Label")
    picture = Picture(
        data=encode(pixels, Encoding("png"), recipe),
        mime_type="image/png",
        width=width,
        height=height,
        seed=recipe["Seed"],
        label=label if isinstance(label, str) else None,
    )
    return picture, recipe


def harmless(value: Any) -> Any:
    """A text without lone surrogates, which have no bytes."""
    return value.encode(errors="replace").decode() if isinstance(value, str) else value


def check(recipe: dict[str, Any]) -> None:
    if not (isinstance(recipe.get("Model"), str) and type(recipe.get("Seed")) is int and 0 <= recipe["Seed"] < SEEDS):
        raise BadInput("the picture tells no recipe of ours, with a Model and a Seed")
    if (size := len(json.dumps(recipe))) > LONGEST:
        raise TooLarge(f"the recipe takes {size} bytes; at most {LONGEST} are taken")
