"""Diffusion pipelines: a folder in diffusers' layout, a single safetensors checkpoint, or a name on the hub. Weights stay where they are.

A folder has a ``model_index.json`` that names the pipeline's class and its components, and a sub-folder for each
(https://huggingface.co/docs/diffusers/using-diffusers/loading). Only classes on a short list are ever built, whatever a file names, and
code in a folder is not looked at. A single checkpoint keeps all networks in one file; the names of its arrays tell which they are.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

from api.conf import is_hub
from api.errors import ConfigError
from api.models.base import Checkpoint, Description
from api.models.formats.safetensors import MAX_HEADER, length_of

INDEX = "model_index.json"
MAX_INDEX = 1 << 20
PIPELINES = (
    "StableDiffusionPipeline",
    "StableDiffusionImg2ImgPipeline",
    "StableDiffusionInpaintPipeline",
    "StableDiffusionXLPipeline",
    "StableDiffusionXLImg2ImgPipeline",
    "StableDiffusionXLInpaintPipeline",
    "StableDiffusion3Pipeline",
    "StableDiffusion3Img2ImgPipeline",
    "StableDiffusion3InpaintPipeline",
    "FluxPipeline",
    "FluxImg2ImgPipeline",
    "FluxInpaintPipeline",
    "LatentConsistencyModelPipeline",
    "LatentConsistencyModelImg2ImgPipeline",
)
LIBRARIES = ("diffusers", "transformers", "stable_diffusion")  # the last is diffusers' own place for the safety checker
MARKS = (  # an array of a single checkpoint, and the pipeline that has it; the first that is found counts
    ("conditioner.embedders.1.model.ln_final.weight", "StableDiffusionXLPipeline"),
    ("conditioner.embedders.0.model.ln_final.weight", "StableDiffusionXLImg2ImgPipeline"),
    ("model.diffusion_model.joint_blocks.0.context_block.attn.qkv.weight", "StableDiffusion3Pipeline"),
    ("double_blocks.0.img_attn.qkv.weight", "FluxPipeline"),
    ("model.diffusion_model.double_blocks.0.img_attn.qkv.weight", "FluxPipeline"),
    ("model.diffusion_model.input_blocks.0.0.weight", "StableDiffusionPipeline"),
)
FIRST = "model.diffusion_model.input_blocks.0.0.weight"


def sniff(path: Path, head: bytes) -> bool:
    if is_hub(path) or (path.is_dir() and (path / INDEX).is_file()):
        return True
    if head[8:9] != b"{":
        return False
    try:
        names = read_shapes(path)
    except ConfigError:
        return False
    return any(mark in names for mark, _ in MARKS)


def describe(path: Path) -> Description:
    """What the index or the header tells. Raises ``ConfigError``."""
    if is_hub(path):
        return description({"hub": hub_name(path)}, 0, 0, "not looked at before it is downloaded")
    return describe_folder(path) if path.is_dir() else describe_file(path)


def read(path: Path) -> Checkpoint:
    """The description alone: pipelines read their weights themselves, and from the hub not before the revision is known."""
    return Checkpoint(description=describe(path), tensors={})


def describe_folder(path: Path) -> Description:
    index = read_index(path)
    shapes = [shape for file in sorted(path.glob("*/*.safetensors")) for shape in read_shapes(file).values()]
    return description({"pipeline": index["_class_name"], "components": components(index)}, len(shapes), sum(map(prod, shapes)))


def describe_file(path: Path) -> Description:
    shapes = read_shapes(path)
    pipeline = next(name for mark, name in MARKS if mark in shapes)
    if pipeline == "StableDiffusionPipeline" and shapes[FIRST][1:2] == (9,):
        pipeline = "StableDiffusionInpaintPipeline"
    return description({"pipeline": pipeline}, len(shapes), sum(map(prod, shapes.values())))


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a safetensors file's arrays, whoever wrote it. Raises ``ConfigError``."""
    try:
        with path.open("rb") as file:
            length = length_of(file.read(8))
            if length > MAX_HEADER:
                raise ValueError(f"a header of {length} bytes")
            header = json.loads(file.read(length))
            shapes = {name: sides(entry["shape"]) for name, entry in header.items() if name != "__metadata__"}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(f"{path}: no safetensors header: {error}") from None
    return shapes


def sides(shape: Any) -> tuple[int, ...]:
    """Raises ``ValueError``."""
    if not isinstance(shape, list) or len(shape) > 8 or not all(type(side) is int and 0 <= side < 1 << 40 for side in shape):
        raise ValueError("an array whose shape is not at most eight sizes")
    return tuple(shape)


def description(arguments: Mapping[str, Any], tensors: int, parameters: int, *notes: str) -> Description:
    return Description(format="diffusers", family="diffusion", arguments=arguments, tensors=tensors, parameters=parameters, notes=notes)


def hub_name(path: Path) -> str:
    """``owner/name`` of ``hub:owner/name``. Raises ``ConfigError``."""
    name = str(path).removeprefix("hub:")
    parts = name.split("/")
    if len(parts) != 2 or not all(part and part.strip(".-") and all(c.isalnum() or c in "-_." for c in part) for part in parts):
        raise ConfigError(f"{path}: a name on the hub looks like hub:owner/name")
    return name


def read_index(path: Path) -> dict[str, Any]:
    """``model_index.json``, checked. Raises ``ConfigError``."""
    try:
        with (path / INDEX).open("rb") as file:
            content = file.read(MAX_INDEX + 1)
        if len(content) > MAX_INDEX:
            raise ValueError(f"more than {MAX_INDEX} bytes")
        index = json.loads(content)
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path / INDEX}: cannot be read: {error}") from None
    name = index.get("_class_name") if isinstance(index, dict) else None
    if name not in PIPELINES:
        raise ConfigError(f"{path / INDEX}: pipeline {name!r} is not served; known: {', '.join(PIPELINES)}")
    components(index)
    return dict(index)


def components(index: Mapping[str, Any]) -> dict[str, str]:
    """The class of each component that there is. Raises ``ConfigError`` for a library that is none of the two."""
    found = {}
    for name, value in index.items():
        if not isinstance(value, list) or name.startswith("_") or value == [None, None]:
            continue
        if len(value) != 2 or value[0] not in LIBRARIES or not isinstance(value[1], str):
            raise ConfigError(
                f"{INDEX}: component {name!r} is {value!r}; only classes of diffusers and transformers are loaded, never code"
            )
        found[name] = value[1]
    return found
