"""Tiny networks as files of each format, written here from the formats' descriptions so that tests need no stored binaries."""

from __future__ import annotations

import argparse
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from api.models.base import Array, Checkpoint, Description
from api.models.formats import layouts
from api.models.nets import stylegan2, stylegan3
from tests.hostile import pickling as p
from tests.tiny import tiny_precure as tiny_precure

Tensors = Mapping[str, Array]
BINOMIAL = np.outer([1, 3, 3, 1], [1, 3, 3, 1]).astype(np.float32) / 64

SMALL: dict[str, Any] = {"z_size": 12, "w_size": 16, "mapping_layers": 2, "size": 32, "widths": (16, 16, 12, 8)}
THIRD: dict[str, Any] = {"z_size": 12, "w_size": 16, "mapping_layers": 2, "size": 16, "widths": (8, 8, 8, 6), "margin": 4, "half_levels": 0}


def made(family: str, seed: int = 5, **arguments: Any) -> Checkpoint:
    """A network with random parameters, noise and biases that matter."""
    torch.manual_seed(seed)
    network = (stylegan2 if family == "stylegan2" else stylegan3).Generator(**arguments)
    state = {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}
    for name, tensor in state.items():
        if name.endswith(("bias", "noise_strength", "w_avg")):
            tensor.add_(torch.randn(tensor.shape) * 0.2)
    tensors: dict[str, Array] = {name: tensor.numpy() for name, tensor in state.items()}
    shapes = {name: array.shape for name, array in tensors.items()}
    told = layouts.stylegan2_arguments(shapes, architecture=arguments.get("architecture")) if family == "stylegan2" else dict(arguments)
    if family == "stylegan2":
        told["conv_clamp"] = arguments.get("conv_clamp")
    labels = layouts.class_labels(arguments.get("c_size", 0))
    description = Description(format="test", family=family, arguments=told, labels=labels, tensors=len(tensors))
    return Checkpoint(description=description, tensors=tensors)


def stream(array: Array) -> bytes:
    """An array as the nested torch stream that NVIDIA's files have."""
    raw = np.ascontiguousarray(array, "<f4").tobytes()
    count = array.size
    return p.legacy(p.storage(count), b"](" + p.text("0") + b"e", struct.pack("<q", count) + raw)


def tensor(array: Array) -> bytes:
    strides = tuple(step // 4 for step in np.ascontiguousarray(array, "<f4").reshape(array.shape).strides)
    return p.tensor(array.shape, strides, stream(array))


def write_nvidia(path: Path, checkpoint: Checkpoint) -> None:
    """A tree of persistent modules with the attributes that the reader looks at."""
    tree: dict[str, Any] = {}
    for name, array in checkpoint.tensors.items():
        *scopes, leaf = name.split(".")
        node = tree
        for scope in scopes:
            node = node.setdefault(scope, {})
        node[leaf] = array
    arguments = checkpoint.description.arguments
    path.write_bytes(p.root(_module("Generator", tree, arguments)))


def _module(kind: str, tree: Mapping[str, Any], arguments: Mapping[str, Any]) -> bytes:
    children = {name: node for name, node in tree.items() if isinstance(node, dict)}
    arrays = {name: node for name, node in tree.items() if not isinstance(node, dict)}
    inner = {name: _module(_kind(name), node, arguments) for name, node in children.items()}
    clamp = arguments["conv_clamp"]
    attributes = p.text("conv_clamp") + (b"N" if clamp is None else p.number(int(clamp)))
    attributes += p.text("architecture") + p.text(arguments.get("architecture", "skip"))
    parameters = p.mapping(**{name: tensor(array) for name, array in arrays.items()})
    return p.module(attributes, kind=kind, children=p.mapping(**inner), parameters=parameters)


def _kind(name: str) -> str:
    return "SynthesisBlock" if name[0] == "b" and name[1:].isdecimal() else "Module"


def write_tensorflow(path: Path, checkpoint: Checkpoint) -> None:
    """Dense weights transposed, convolutions HWIO, upsampling ones turned, style biases less one."""
    synthesis: list[bytes] = []
    mapping: list[bytes] = []
    for name, array in checkpoint.tensors.items():
        if name == "mapping.w_avg":
            continue
        theirs, value = _theirs(name, array)
        (mapping if name.startswith("mapping") else synthesis).append(p.items(p.text(theirs), ndarray(value)))
    components = p.mapping(synthesis=_network(synthesis), mapping=_network(mapping))
    mean = p.items(p.text("dlatent_avg"), ndarray(checkpoint.tensors["mapping.w_avg"]))
    network = _network([mean], components)
    path.write_bytes(b"\x80\x02" + p.items(_network([]), _network([]), network) + b".")


def ndarray(array: Array) -> bytes:
    data = p.call("_codecs encode", p.text(np.ascontiguousarray(array, "<f4").tobytes().decode("latin1")), p.text("latin1"))
    dtype = p.call("numpy dtype", p.text("f4"), b"\x89", b"\x88") + p.items(p.number(3), p.text("<"), b"N", b"N", b"N") + b"b"
    made = p.call("numpy._core.multiarray _reconstruct", p.name("numpy ndarray"), p.items(p.number(0)), p.blob(b"b"))
    return made + p.items(p.number(1), p.items(*map(p.number, array.shape)), dtype, b"\x89", data) + b"b"


def _network(variables: list[bytes], components: bytes = b"}") -> bytes:
    listed = b"](" + b"".join(variables) + b"e"
    state = p.mapping(version=p.number(4), static_kwargs=b"}", components=components, build_module_src=p.text("raise"), variables=listed)
    return p.name("dnnlib.tflib.network Network") + b")\x81" + state + b"b"


def _theirs(name: str, array: Array) -> tuple[str, Array]:
    _, block, *rest = name.split(".")
    if block.startswith("fc"):
        return f"Dense{block[2:]}/{rest[0]}", array.T
    side = int(block[1:])
    level = side.bit_length() - 3
    if rest[0] == "const":
        return "4x4/Const/const", array[None]
    if rest[1] == "noise_const":
        return f"noise{2 * level - (rest[0] == 'conv0')}", array[None, None]
    layer = {"conv0": "Conv0_up", "conv1": "Conv1" if level else "Conv", "torgb": "ToRGB"}[rest[0]]
    leaf = ".".join(rest[1:])
    if leaf == "weight":
        array = array.transpose(2, 3, 1, 0)
        return f"{side}x{side}/{layer}/weight", array[::-1, ::-1] if rest[0] == "conv0" else array
    value = array.T if leaf == "affine.weight" else array.astype(np.float32) - np.float32(1) if leaf == "affine.bias" else array
    return f"{side}x{side}/{layer}/{leaf.replace('affine.', 'mod_')}", value


def rosinality_state(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """The generator's tensors by the names of that project."""
    state: dict[str, torch.Tensor] = {}
    for name, array in checkpoint.tensors.items():
        if name != "mapping.w_avg":
            theirs, shape = _rosinality_name(name, array.shape)
            state[theirs] = torch.from_numpy(np.array(array)).reshape(shape)
            if theirs.endswith(("conv.weight",)) and (".conv0." in name or name.endswith("torgb.weight")):
                state[theirs.rpartition(".")[0] + ".blur.kernel"] = torch.from_numpy(BINOMIAL * 4)
    return state


def _rosinality_name(name: str, shape: tuple[int, ...]) -> tuple[str, tuple[int, ...]]:
    _, block, *rest = name.split(".")
    if block.startswith("fc"):
        return f"style.{int(block[2:]) + 1}.{rest[0]}", shape
    level = int(block[1:]).bit_length() - 3
    if rest[0] == "const":
        return "input.input", (1, *shape)
    leaf = ".".join(rest[1:])
    if leaf == "noise_const":
        return f"noises.noise_{2 * level - (rest[0] == 'conv0')}", (1, 1, *shape)
    if rest[0] == "torgb":
        place = f"to_rgbs.{level - 1}" if level else "to_rgb1"
    else:
        place = f"convs.{2 * level - 2 + int(rest[0][4:])}" if level else "conv1"
    if leaf == "bias":
        return (f"{place}.bias", (1, *shape, 1, 1)) if rest[0] == "torgb" else (f"{place}.activate.bias", shape)
    if leaf == "noise_strength":
        return f"{place}.noise.weight", (1,)
    if leaf == "weight":
        return f"{place}.conv.weight", (1, *shape)
    return f"{place}.conv.{leaf.replace('affine', 'modulation')}", shape


def write_rosinality(path: Path, checkpoint: Checkpoint, *, zipped: bool = True) -> None:
    mean = torch.from_numpy(np.array(checkpoint.tensors["mapping.w_avg"]))
    content = {"g_ema": rosinality_state(checkpoint), "latent_avg": mean, "args": argparse.Namespace(size=32)}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)


def write_encoder4editing(path: Path, checkpoint: Checkpoint, *, zipped: bool = True) -> None:
    state = {f"decoder.{name}": value for name, value in rosinality_state(checkpoint).items()}
    mean = torch.from_numpy(np.array(checkpoint.tensors["mapping.w_avg"])).repeat(8, 1)
    content = {"state_dict": {"encoder.input_layer.0.weight": torch.zeros(4, 3, 3, 3), **state}, "latent_avg": mean}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
