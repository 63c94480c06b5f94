"""What models may be called, and where their checkpoints may be."""

from __future__ import annotations

import string
from pathlib import Path

RESERVED = frozenset(
    "version models docs redoc openapi.json healthz readyz metrics ui text2img img2img inpainting txt2img inpaint "
    "task events blob token user images sessions collections tags v1 favicon.ico robots.txt".split()
)
"""First segments of routes: a model may not be called so."""

UNRESERVED = frozenset(string.ascii_letters + string.digits + "-_.~")


def forbid_id(model_id: str) -> str | None:
    """Why a model may not be called so, if it may not."""
    if model_id in RESERVED:
        return f"{model_id!r} is a route of the server; choose another id"
    if not model_id or model_id.startswith(".") or not all(map(fits_url, model_id)):
        return f"{model_id!r} cannot stand in a URL; use letters, digits, '-', '_', '~' and '.' (not as the first)"
    return None


def fits_url(character: str) -> bool:
    """Whether it stands in a path as it is: RFC 3986's unreserved characters, and other scripts' as RFC 3987 adds them."""
    return character in UNRESERVED if character.isascii() else character.isprintable()


def is_hub(file: Path) -> bool:
    """Whether the file is a name on the Hugging Face hub: ``hub:owner/name``."""
    return str(file).startswith("hub:")
