"""The commands of ``python -m api``, as functions. They print to standard output and raise ``ConfigError`` or ``OSError``.

What is slow to import is imported by the command that needs it.
"""

from __future__ import annotations

import dataclasses
import importlib
import itertools
import json
import os
import re
import signal
import sys
import time
import unicodedata
from collections.abc import Container, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from api.conf import RESERVED, Config, docstrings, forbid_id, load_config, parse_config
from api.errors import ConfigError
from api.models.base import Array, Description

DEFAULT = Path(__file__).resolve().parents[1] / "default" / "config.toml"
HEADER = "# Written by `python -m api init`. All keys: docs/configuration.md\n\n"


def check(path: Path) -> None:
    """Checks a TOML file and reads the header of every checkpoint in it: one line for each model."""
    from api.models.registry import describe_models

    config = load_config(path)
    faults, width = [], max(map(len, config.models))
    for model_id, model in bar(config.models.items(), "checking"):
        found = describe_models(config.model_copy(update={"models": {model_id: model}}))[model_id]
        if isinstance(found, ConfigError):
            faults.append(f"{path}: {found}")
        else:
            print(printable(f"{model_id:{width}}  {config.device(model_id)}  {summary(found)}  {model.file}"))
    if faults:
        raise ConfigError("\n".join(faults))


def reload(path: Path) -> None:
    """Checks a TOML file and has the server that runs it apply it; returns when that is done, or tells why not."""
    from api import presence
    from api.models.registry import describe_models

    config = load_config(path)
    if faults := [fault for fault in describe_models(config).values() if isinstance(fault, ConfigError)]:
        raise ConfigError("\n".join(f"{path}: {fault}" for fault in faults))
    folder = config.server.tmp_dir
    if (before := presence.find(folder)) is None:
        raise ConfigError(f"{folder}: no server runs here")
    os.kill(before.pid, signal.SIGHUP)
    while (now := presence.find(folder)) is not None and now.turn == before.turn:
        time.sleep(0.05)
    if now is None:
        raise ConfigError(f"{folder}: the server has ended")
    if now.refused is not None:
        raise ConfigError(now.refused)
    print("applied")


def deploy(path: Path) -> None:
    """Brings the models of a TOML file into its Ray cluster: starts, updates and ends deployments; returns when all serve."""
    from api.models.registry import describe_models

    config = on_ray(path)
    if faults := [fault for fault in describe_models(config).values() if isinstance(fault, ConfigError)]:
        raise ConfigError("\n".join(f"{path}: {fault}" for fault in faults))
    import_deploy().deploy(config, path)
    print("deployed")


def status(path: Path, *, as_json: bool = False) -> None:
    """Tells how the models of a TOML file are in its Ray cluster."""
    config = on_ray(path)
    states = list(import_deploy().states(config))
    if as_json:
        print(json.dumps([dataclasses.asdict(state) for state in states], indent=2))
        return
    width = max((len(state.model_id) for state in states), default=0)
    for state in states:
        replicas = ", ".join(f"{count} {name.lower()}" for name, count in state.replicas.items()) or "no replica"
        print(printable(f"{state.model_id:{width}}  {state.health.lower()}  {replicas}  queue {state.queue}  {state.message}".rstrip()))
    if missing := sorted(set(config.models) - {state.model_id for state in states}):
        print(printable(f"not deployed: {', '.join(missing)}"))


def down(path: Path) -> None:
    """Ends the deployments of a TOML file's models, when they have answered what they have."""
    import_deploy().down(on_ray(path))
    print("ended")


def on_ray(path: Path) -> Config:
    config = load_config(path)
    if config.cluster.engine != "ray":
        raise ConfigError(f'{path}: cluster.engine: found {json.dumps(config.cluster.engine)}; must be "ray" for this')
    return config


def import_deploy() -> Any:
    """What needs Ray. Raises ``ConfigError`` where it is not installed."""
    importlib.import_module("api.engine.ray")
    return importlib.import_module("api.engine.deploy")


def info(path: Path, *, as_json: bool = False) -> None:
    """Tells what is in a checkpoint without loading its weights."""
    facts = tell(path, describe(path))
    if as_json:
        print(json.dumps(facts, indent=2))
        return
    for name, value in facts.items():
        for label, line in zip(itertools.chain([name], itertools.repeat("")), spell(value), strict=False):
            print(printable(f"{label:12}{line}").rstrip())


def init(folder: Path, target: Path, *, force: bool = False) -> None:
    """Writes a TOML file that serves every checkpoint found in a folder."""
    import tomli_w

    if not folder.is_dir():
        raise ConfigError(f"{folder}: is not a folder")
    refuse_existing(target, force)
    if is_foreign(os.path.relpath(folder, target.parent)):
        raise ConfigError(f"{folder}: its path from {target.parent} cannot stand in a TOML file, which is UTF-8")
    models: dict[str, dict[str, Any]] = {}
    lines: list[str] = []
    for path, description in find_checkpoints(folder):
        model_id = choose_id(path.stem, models)
        place = Path(os.path.relpath(path, target.parent)).as_posix()
        models[model_id] = {"file": place, "relative": True, "name": path.stem}
        lines.append(f"{model_id}  {summary(description)}  {path}")
    if not models:
        raise ConfigError(f"{folder}: no checkpoint found")
    parse_config({"models": models}, str(target))
    put(target, HEADER + tomli_w.dumps({"models": models}))
    print(printable("\n".join(lines)))


def convert(source: Path, target: Path, *, force: bool = False) -> None:
    """Rewrites a checkpoint as safetensors, which loads faster and holds nothing but arrays and a description."""
    from api.models import formats
    from api.models.formats import safetensors

    if target.suffix != ".safetensors":
        raise ConfigError(f"{target}: the name must end in .safetensors")
    refuse_existing(target, force)
    checkpoint = formats.find(source).read(source)
    if not checkpoint.tensors:
        raise ConfigError(f"{source}: a pipeline is served as it is; there is nothing to convert")

    def watch(arrays: Iterable[Array]) -> Iterator[Array]:
        with bar(None, "writing", unit="B", unit_scale=True, total=sum(array.nbytes for array in checkpoint.tensors.values())) as progress:
            for array in arrays:
                yield array
                progress.update(array.nbytes)

    safetensors.write(target, checkpoint, watch)
    for note in checkpoint.description.notes:
        print(printable(note))
    print(printable(f"{target}  {summary(checkpoint.description)}"))


def schema() -> None:
    """Prints the JSON Schema of the TOML file, with which editors complete and check it."""
    print(json.dumps(json_schema(), indent=2, ensure_ascii=False))


def openapi(path: Path) -> None:
    """Prints the OpenAPI description of the server that a TOML file describes."""
    from api.app import create_app

    print(json.dumps(create_app(load_config(path)).openapi(), indent=2))


def bar(things: Any, what: str, **options: Any) -> Any:
    """``things`` with a progress bar on standard error, if that is a terminal."""
    from tqdm import tqdm

    return tqdm(things, what, leave=False, disable=None, **options)


def summary(description: Description) -> str:
    """A checkpoint in a few words."""
    classes = f"{len(description.labels)} classes" if description.labels else "unconditional"
    return f"{description.family} ({description.format}), {classes}, {description.parameters:,} parameters"


def tell(path: Path, description: Description) -> dict[str, Any]:
    """A checkpoint's facts in JSON types."""
    size = sum(file.stat().st_size for file in (path.rglob("*") if path.is_dir() else [path]) if file.is_file())
    return {
        "file": str(path),
        "bytes": size,
        "format": description.format,
        "family": description.family,
        "arguments": dict(description.arguments),
        "labels": None if description.labels is None else list(description.labels),
        "tensors": description.tensors,
        "parameters": description.parameters,
        "notes": list(description.notes),
    }


def spell(value: object) -> Iterator[str]:
    """The lines in which a person reads a fact."""
    match value:
        case None:
            yield "none"
        case dict():
            yield from (f"{key} = {json.dumps(item)}" for key, item in value.items())
        case list() if len(value) > 100:
            yield f"{len(value)}: {', '.join(map(str, value[:100]))}, …"
        case list():
            yield ", ".join(map(str, value)) or "none"
        case int():
            yield f"{value:,}"
        case _:
            yield str(value)


def printable(text: str) -> str:
    """The text without what could steer a terminal: names and labels come from files of others."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape", "backslashreplace").decode() for c in text)


def describe(path: Path) -> Description:
    """What a checkpoint holds. Raises ``ConfigError``, also where a broken one fails in a way that its reader did not foresee."""
    from api.models import formats

    try:
        return formats.find(path).describe(path)
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(f"{path}: {type(error).__name__}: {error}") from None


def find_checkpoints(folder: Path) -> Iterator[tuple[Path, Description]]:
    """The checkpoints below a folder by name; one that cannot be read is told of and passed over."""
    for path in bar(list(candidates(folder)), "reading"):
        try:
            yield path, describe(path)
        except ConfigError as error:
            print(printable(f"passed over: {error}"), file=sys.stderr)


def candidates(folder: Path) -> Iterator[Path]:
    """Files, and folders (which are then not searched), whose beginning is that of a checkpoint; an impossible name is told of."""
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        found, inner = is_checkpoint(path), path.is_dir() and not path.is_symlink()
        if (found or inner) and not path.name.isprintable():
            print(printable(f"passed over: {path}: its name is not printable UTF-8"), file=sys.stderr)
        elif found:
            yield path
        elif inner:
            yield from candidates(path)


def is_foreign(name: str) -> bool:
    """Whether it has bytes that are not UTF-8: Python keeps them as lone surrogates."""
    return name.encode(errors="replace").decode() != name


def is_checkpoint(path: Path) -> bool:
    from api.models import formats

    try:
        formats.find(path)
    except ConfigError:
        return False
    return True


def choose_id(stem: str, taken: Container[str]) -> str:
    """A free model id that says what the file's name says."""
    words = re.sub(r"[^\w.~-]+", "-", unicodedata.normalize("NFC", stem), flags=re.ASCII if stem.isascii() else 0).strip("-.") or "model"
    names = itertools.chain([words], (f"{words}-{number}" for number in itertools.count(2)))
    return next(name for name in names if name not in taken and forbid_id(name) is None)


def refuse_existing(path: Path, force: bool) -> None:
    if path.exists() and not force:
        raise ConfigError(f"{path}: exists; --force replaces it")


def put(path: Path, text: str) -> None:
    """Writes a text file as a whole or not at all."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        draft.write_text(text, encoding="utf-8")
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def json_schema() -> Mapping[str, Any]:
    """The configuration's JSON Schema. TOML has no null, so that what may be unset is plainly optional."""
    from pydantic.json_schema import GenerateJsonSchema

    class Schema(GenerateJsonSchema):
        def model_schema(self, schema: Any) -> Any:
            made = super().model_schema(schema)
            for name, text in docstrings(schema["cls"]).items():
                made["properties"][name]["description"] = text
            return made

        def nullable_schema(self, schema: Any) -> Any:
            return self.generate_inner(schema["schema"])

        def default_schema(self, schema: Any) -> Any:
            made = super().default_schema(schema)
            return {key: value for key, value in made.items() if (key, value) != ("default", None)}

    made = Config.model_json_schema(schema_generator=Schema)
    made["properties"]["models"]["propertyNames"] = {"not": {"enum": sorted(RESERVED)}, "pattern": r"^[^.\s/\\?#%][^\s/\\?#%]*$"}
    return {"$schema": GenerateJsonSchema.schema_dialect, **made, "title": "Configuration of StyleGAN FastAPI"}
