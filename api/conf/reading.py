"""From a TOML file to a checked tree."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from api.conf.faults import dotted, tell_fault
from api.conf.names import forbid_id, is_hub
from api.conf.tree import Config, ModelConf
from api.errors import ConfigError


def load_config(path: str | Path) -> Config:
    """Reads and checks the TOML at ``path``; every path in the result is absolute. Raises ``ConfigError``."""
    path = Path(path)
    try:
        data = tomllib.loads(path.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not valid TOML: byte {error.start} is not UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from None
    return resolve(parse_config(data, str(path)), absolute(path).parent)


def parse_config(data: Mapping[str, Any], source: str = "configuration") -> Config:
    """The tree from plain data. Raises ``ConfigError`` with a line for each mistake."""
    try:
        config = Config.model_validate(data)
    except ValidationError as error:
        raise ConfigError("\n".join(f"{source}: {tell_fault(fault)}" for fault in error.errors())) from None
    faults = {model_id: fault for model_id in config.models if (fault := forbid_id(model_id))}
    if faults:
        raise ConfigError("\n".join(f"{source}: {dotted(['models', model_id])}: {fault}" for model_id, fault in faults.items()))
    return config


def resolve(config: Config, folder: Path) -> Config:
    """The same configuration with absolute paths; ``folder`` is the TOML file's."""
    models = {key: resolve_model(model, folder if model.relative else Path.cwd()) for key, model in config.models.items()}
    paths = {"tmp_dir": absolute(config.server.tmp_dir), "data_dir": absolute(config.server.data_dir)}
    return config.model_copy(update={"models": models, "server": config.server.model_copy(update=paths)})


def resolve_model(model: ModelConf, folder: Path) -> ModelConf:
    file = model.file if is_hub(model.file) else absolute(folder / model.file)
    loras = {str(absolute(folder / name)): weight for name, weight in model.diffusion.loras.items()}
    config = model.diffusion.config and absolute(folder / model.diffusion.config)
    diffusion = model.diffusion.model_copy(update={"loras": loras, "config": config})
    directions = {name: conf.model_copy(update={"file": absolute(folder / conf.file)}) for name, conf in model.directions.items()}
    return model.model_copy(update={"file": file, "diffusion": diffusion, "directions": directions})


def absolute(path: Path) -> Path:
    return Path(os.path.realpath(path))  # which, unlike Path.resolve, has no quarrel with links that go in circles
