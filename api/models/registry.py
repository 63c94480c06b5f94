"""From the configuration to models: file → format → checkpoint → family → model. This module itself does not import torch."""

from __future__ import annotations

import hashlib
import json
import pkgutil
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import cast

from api.conf import Config, ModelConf, is_hub
from api.errors import ConfigError
from api.models import families, formats
from api.models.base import Description, Model, Place, go_on
from api.models.jobs import Generate

BLOCK = 1 << 20


def describe_models(config: Config) -> dict[str, Description | ConfigError]:
    """What the headers of all checkpoints tell, or why one cannot be used, by model. Loads no weights and no torch."""
    found: dict[str, Description | ConfigError] = {}
    for model_id, conf in config.models.items():
        try:
            description = formats.find(conf.file).describe(conf.file)
            check_family(conf.family or description.family)
            found[model_id] = description
        except Exception as error:
            found[model_id] = explain(model_id, conf, error)
    return found


def load_models(config: Config, device: str) -> dict[str, Model]:
    """All models that live on ``device``. Raises one ``ConfigError`` with a line for each that cannot be loaded."""
    models: dict[str, Model] = {}
    faults: list[str] = []
    for model_id in config.devices().get(device, []):
        try:
            models[model_id] = load_model(config, model_id)
        except ConfigError as error:
            faults.append(str(error))
    if faults:
        raise ConfigError("\n".join(faults))
    return models


def load_model(config: Config, model_id: str) -> Model:
    """One model on its device, warmed up. Raises ``ConfigError`` that names the model and its file."""
    conf = config.models[model_id]
    try:
        checkpoint = formats.find(conf.file).read(conf.file)
        family = import_family(conf.family or checkpoint.description.family)
        model = cast(Model, family.load(checkpoint, conf, place_of(config, model_id)))
        if conf.warmup:
            warm_up(model, place_of(config, model_id).max_batch)
    except Exception as error:
        raise explain(model_id, conf, error) from error
    return model


def place_of(config: Config, model_id: str) -> Place:
    """Where and how the model lives, with all that it inherits from the configuration."""
    conf, engine = config.models[model_id], config.server.engine
    device = config.device(model_id)
    precision = "float32" if device == "cpu" else conf.precision or engine.precision
    return Place(
        id=model_id,
        digest=digest(conf, device, precision),
        device=device,
        precision=precision,
        max_batch=conf.max_batch or engine.max_batch,
        lossy=config.lossy_of(model_id),
    )


def digest(conf: ModelConf, device: str, precision: str) -> str:
    """32 hexadecimal digits of the checkpoint's content and of all settings that change its pictures."""
    unseen = {"file", "relative", "name", "description", "lossy", "gpu", "precision", "warmup", "max_batch", "directions", "cluster"}
    settings = conf.model_dump(mode="json", exclude=unseen)
    total = hashlib.sha256(json.dumps([settings, device.partition(":")[0], precision], sort_keys=True).encode())
    for path in files_of(conf.file):
        total.update(f"\0{path.relative_to(conf.file)}\0{path.stat().st_size}\0".encode())
        with path.open("rb") as file:
            while block := file.read(BLOCK):
                total.update(block)
    return total.hexdigest()[:32]


def files_of(path: Path) -> list[Path]:
    """The file itself, or all files of a folder in a fixed order; what the hub gives is known to its family alone."""
    if is_hub(path):
        return []
    return sorted(entry for entry in path.rglob("*") if entry.is_file()) if path.is_dir() else [path]


def family_names() -> list[str]:
    return sorted(info.name for info in pkgutil.iter_modules(families.__path__))


def check_family(name: str) -> str:
    if name not in family_names():
        raise ConfigError(f"family {name!r} is unknown; known: {', '.join(family_names())}")
    return name


def import_family(name: str) -> ModuleType:
    """The module of a family. The name may come from a checkpoint: only modules that exist in the package count."""
    return import_module(f"{families.__name__}.{check_family(name)}")


def warm_up(model: Model, max_batch: int) -> None:
    """First runs are slow: kernels are chosen and memory is taken then. Long models have their own ways."""
    if model.info.long or Generate.__name__ not in model.info.kinds:
        return
    for count in {1, max_batch}:
        jobs = [model.prepare(Generate(model=model.info.id, seed=seed)) for seed in range(count)]
        model.run(jobs, go_on)


def explain(model_id: str, conf: ModelConf, error: Exception) -> ConfigError:
    """The same fault with the model's id and file before it, once each."""
    text = str(error) if isinstance(error, ConfigError) else f"{type(error).__name__}: {error}"
    where = "" if str(conf.file) in text else f"{conf.file}: "
    return ConfigError(f"models.{model_id}: {where}{text}")
