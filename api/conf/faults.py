"""What is wrong with a TOML, in the words of TOML."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping
from typing import Any

from api.conf.keys import keys_at


def tell_fault(fault: Mapping[str, Any]) -> str:
    """One pydantic error as: key path, what was found, what is allowed."""
    loc = [str(part) for part in fault["loc"]]
    where = dotted(loc) or "the file"
    if fault["type"] == "extra_forbidden":
        keys = sorted(keys_at(loc[:-1]))
        near = difflib.get_close_matches(loc[-1], keys, 1, 0.5)
        hint = f"did you mean {near[0]!r}?" if near else "known here: " + ", ".join(keys)
        return f"{where}: unknown key; {hint}"
    if fault["type"] == "missing":
        return f"{where}: is required and missing"
    allowed = ALLOWED.get(fault["type"], fault["msg"]).format(**fault.get("ctx", {}))
    return f"{where}: found {shorten(fault['input'])}; {allowed}"


ALLOWED = {
    "bool_type": "must be true or false",
    "int_type": "must be a whole number",
    "float_type": "must be a number",
    "string_type": "must be a text",
    "path_type": "must be a path",
    "list_type": "must be a list",
    "dict_type": "must be a table",
    "model_type": "must be a table",
    "literal_error": "must be {expected}",
    "too_short": "must have at least {min_length} entry",
    "string_too_short": "must not be empty",
    "finite_number": "must be finite",
    "string_pattern_mismatch": "must be like {pattern}",
    "greater_than": "must be greater than {gt:g}",
    "greater_than_equal": "must be at least {ge:g}",
    "less_than_equal": "must be at most {le:g}",
    "value_error": "{error}",
}
"""What is allowed, by the type of pydantic's error, in the words of TOML."""


def dotted(path: list[str]) -> str:
    """A key path as TOML writes it."""
    return ".".join(name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else shorten(name) for name in path)


def shorten(value: object) -> str:
    """A value as TOML or JSON would write it, on one line and not too long."""
    try:
        text = json.dumps(value, default=str, ensure_ascii=False)
    except RecursionError:  # tables in tables
        return type(value).__name__
    text = "".join(character if character.isprintable() else f"\\u{ord(character):04x}" for character in text)
    return text if len(text) <= 80 else text[:77] + "..."
