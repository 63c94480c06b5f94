"""The configuration: one TOML file as a tree of frozen pydantic models.

``tree`` holds the keys, ``reading`` makes the tree of a file. `docs/configuration.md` and the JSON Schema are made from the tree.
"""

from api.conf.digest import engine_digest
from api.conf.keys import docstrings, keys_at, walk
from api.conf.names import RESERVED, forbid_id, is_hub
from api.conf.reading import load_config, parse_config, resolve
from api.conf.tree import (
    AuthConf,
    BlockConf,
    ConcurrencyConf,
    Config,
    DiffusionConf,
    DirectionConf,
    HttpConf,
    LimitConf,
    ModelConf,
    RateConf,
    TraceConf,
)

__all__ = [
    "RESERVED",
    "AuthConf",
    "BlockConf",
    "ConcurrencyConf",
    "Config",
    "DiffusionConf",
    "DirectionConf",
    "HttpConf",
    "LimitConf",
    "ModelConf",
    "RateConf",
    "TraceConf",
    "docstrings",
    "engine_digest",
    "forbid_id",
    "is_hub",
    "keys_at",
    "load_config",
    "parse_config",
    "resolve",
    "walk",
]
