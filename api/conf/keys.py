"""The tree's keys with their descriptions, for messages and documents."""

from __future__ import annotations

import ast
import copy
import inspect
import itertools
from collections.abc import Iterator
from typing import Any, get_args, get_origin

from pydantic.fields import FieldInfo

from api.conf.tree import Config, Section


def section(annotation: Any) -> type[Section] | None:
    """The section that a field holds, if it holds one."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    return next((found for arg in get_args(annotation) if (found := section(arg))), None)


def keys_at(path: list[str]) -> list[str]:
    """The keys that are known at a path, such as ``["server", "http"]``."""
    current: type[Section] = Config
    names = iter(path)
    for name in names:
        field = current.model_fields.get(name)
        inner = section(field.annotation) if field else None
        if field is None or inner is None:
            return []
        current = inner
        if get_origin(field.annotation) is dict and next(names, None) is None:
            return []
    return list(current.model_fields)


def walk(current: type[Section] = Config, prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every key with its pydantic field, description included: ``("server.http.cors.enabled", FieldInfo)`` and so on."""
    texts = docstrings(current)
    for name, field in current.model_fields.items():
        inner = section(field.annotation)
        if inner is None:
            field = copy.copy(field)
            field.description = texts[name]
            yield prefix + name, field
        else:
            many = get_origin(field.annotation) is dict
            yield from walk(inner, f"{prefix}{name}.<id>." if many else f"{prefix}{name}.")


def docstrings(current: type[Section]) -> dict[str, str]:
    """The text below each key. Only documents need it: pydantic would read the source for it at every import."""
    (definition,) = ast.parse(inspect.getsource(current)).body
    assert isinstance(definition, ast.ClassDef)
    found = {}
    for key, text in itertools.pairwise(definition.body):
        if isinstance(key, ast.AnnAssign) and isinstance(text, ast.Expr):
            found[ast.unparse(key.target)] = inspect.cleandoc(ast.literal_eval(text.value))
    return found
