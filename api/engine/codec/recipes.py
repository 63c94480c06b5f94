"""Recipes as the text that web UIs for diffusion write into pictures and read out of them.

The prompt, a line ``Negative prompt: …``, and a last line of parameters: ``Steps: 20, Seed: 7, Psi: 0.7, Size: 64x64``. A text that would
be misread stands in quotes, as a JSON string.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np

Value = str | int | float | bool
SHORT = 100  # characters of a text that is remembered
PLAIN = frozenset((str, int, float, bool))

PROMPT, NEGATIVE = "Prompt", "Negative prompt"
MARK = NEGATIVE + ": "
KEY = re.compile(r"\w[\w /-]*", re.ASCII)
QUOTED = r'"(?:[^"\\]|\\.)*+"'
PAIR = re.compile(rf"\s*(\w[\w /-]*):[ \t]*({QUOTED}(?=\s*(?:,|$))|[^,]*)(?:,|$)", re.ASCII)
INTEGER = re.compile(r"-?(?:0|[1-9]\d{0,30})", re.ASCII)
REAL = re.compile(r"-?\d{1,30}(?:\.\d{1,30})?(?:e[+-]?\d{1,3})?", re.ASCII)
# Controls end a line or a chunk somewhere, lone surrogates have no bytes, and the rest looks like part of a line.
UNSAFE = re.compile(r'^["\s]|[,:\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]|\s$|^$')
WILD = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


def recipe_text(recipe: Mapping[str, Any]) -> str:
    """The text of a recipe; ``parse_recipe`` is its inverse.

    Keys are ASCII words (letters, digits, ``_``, space, ``/``, ``-``); values are texts, finite numbers and truth values, and anything
    else is written as the text of its JSON. ``None`` is left out. ``Prompt`` and ``Negative prompt`` are the lines at the top.
    """
    told = {key: value if type(value) in PLAIN else plain(value) for key, value in recipe.items() if value is not None}
    if PROMPT not in told and NEGATIVE not in told:
        return write_line(told)
    text = write_prompts(told)
    # A prompt may look like our own marks: then it is quoted among the parameters, where nothing can be taken for something else.
    return text if text is not None and parse_recipe(text) == told else write_line(told)


def plain(value: Any) -> Value:
    if isinstance(value, np.generic):
        value = value.item()
    return value if isinstance(value, str | int | float) else json.dumps(value, default=str)


def write_prompts(told: Mapping[str, Value]) -> str | None:
    rest = {key: value for key, value in told.items() if key not in (PROMPT, NEGATIVE)}
    lines = [str(told[PROMPT])] if PROMPT in told else []
    lines += [MARK + str(told[NEGATIVE])] if NEGATIVE in told else []
    lines += [write_line(rest)] if rest else []
    text = "\n".join(lines)
    return None if WILD.search(text) else text


def write_line(told: Mapping[str, Value]) -> str:
    return ", ".join(
        [check_key(key) + ": " + (write_text(value) if isinstance(value, str) else repr(value)) for key, value in told.items()]
    )


# Every picture of a model has the same keys and nearly the same texts; looking at them was a tenth of the time of a small one.
@lru_cache(256)
def check_key(key: str) -> str:
    if not KEY.fullmatch(key) or key != key.strip():
        raise ValueError(f"{key!r} cannot be a recipe's key; use letters, digits, spaces, '_', '/' and '-'")
    return key


def write_text(value: str) -> str:
    """A text as it stands in the line: in quotes where it would be misread."""
    return write_short(value) if len(value) <= SHORT else quote(value)


@lru_cache(256)
def write_short(value: str) -> str:
    return quote(value)


def quote(value: str) -> str:
    if UNSAFE.search(value) or read_value(value) != value:
        return json.dumps(value)
    return value


def read_value(text: str) -> Value:
    """A value from its plain text: a number or truth value if it reads like one."""
    if INTEGER.fullmatch(text):
        return int(text)
    # Only what Python writes for a float: a hash such as 12345e10 stays a text.
    if REAL.fullmatch(text) and repr(float(text)) == text:
        return float(text)
    return {"True": True, "False": False}.get(text, text)


def unquote(text: str) -> Value:
    """A value as it stands in the line; what only looks like a JSON string is itself."""
    if not text.startswith('"'):
        return read_value(text)
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, str) else text


def parse_recipe(text: str) -> dict[str, Value]:
    """The recipe that a text tells, whoever wrote it. Never raises: what is no parameter line belongs to the prompt."""
    *lines, last = text.strip().split("\n")
    told = parse_line(last)
    if told is None:
        lines, told = [*lines, last], {}
    start = next((index for index, line in enumerate(lines) if line.startswith(MARK)), len(lines))
    negative = "\n".join(lines[start:]).removeprefix(MARK)
    prompts = {PROMPT: "\n".join(lines[:start])} if any(lines[:start]) else {}
    return prompts | ({NEGATIVE: negative} if negative else {}) | told


def parse_line(line: str) -> dict[str, Value] | None:
    """The pairs of a parameter line, ``None`` if it is something else."""
    told: dict[str, Value] = {}
    place = 0
    while place < len(line):
        match = PAIR.match(line, place)
        if match is None or (match[1] == NEGATIVE and place == 0 and not match[2].startswith('"')):
            return None
        told[match[1].strip()] = unquote(match[2].strip())
        place = match.end()
    return told
