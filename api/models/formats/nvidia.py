"""Pickles of NVIDIA's ``stylegan2-ada-pytorch`` and ``stylegan3``: networks of both generations, saved by either code.

The file is a dictionary whose ``G_ema`` is a tree of modules. Each is ``torch_utils.persistence._reconstruct_persistent_obj`` over its
source text (ignored here), its class name and its state; tensors stand in the states as nested torch streams. What a network
looks like is read from the modules' own attributes and from the tensors' shapes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import chain
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np

from api.models.base import Checkpoint, Description, count_parameters
from api.models.formats import layouts, torchfiles
from api.models.formats.files import check_growth, mapped, span
from api.models.formats.pickles import Budget, Machine, Name, Names, Stub, refuse, table
from api.models.formats.torchfiles import Tensor

MARK = b"_reconstruct_persistent_obj"
MAX_MODULES = 5000
FILTER = np.outer([1, 3, 3, 1], [1, 3, 3, 1]) / 64
"""The low-pass filter that all published StyleGAN2 networks resample with (Karras et al. 2019, section 3.1: binomial)."""


class Module(Stub):
    """A persistent module: its class's name and its state, which is data."""

    __slots__ = ("kind", "state")

    def __init__(self, kind: str, state: dict[Any, object]) -> None:
        self.kind, self.state = kind, state

    def parts(self) -> Iterable[object]:
        return (self.state,)

    def children(self) -> dict[str, Module]:
        """Submodules by name."""
        found = self.state.get("_modules")
        return {str(name): child for name, child in found.items() if isinstance(child, Module)} if isinstance(found, dict) else {}

    def get(self, name: str, kind: type | tuple[type, ...], default: Any) -> Any:
        """An attribute, or ``default`` if there is none of this type."""
        value = self.state.get(name, default)
        return value if isinstance(value, kind) else default


def _module(*args: object) -> Module:
    match args:
        case ({"type": "class", "class_name": str() as kind, "state": dict() as state},):
            return Module(kind, state)
    refuse("a persistent object that is not a module with a state")


def _easy_dict(*args: object) -> dict[object, object]:
    if args:
        refuse("an EasyDict with arguments")
    return {}


def names(budget: Budget) -> Names:
    own = table(
        Name("torch_utils.persistence._reconstruct_persistent_obj", _module),
        Name("dnnlib.util.EasyDict", _easy_dict, _easy_dict),
        Name("dnnlib.EasyDict", _easy_dict, _easy_dict),
    )
    return {**torchfiles.nested_names(budget), **own}


def sniff(path: Path, head: bytes) -> bool:
    """A pickle of protocol 2 to 5 that names the persistent module near its beginning."""
    if head[:1] != b"\x80" or head[1:2] not in (b"\x02", b"\x03", b"\x04", b"\x05") or torchfiles.is_legacy(head):
        return False
    return MARK in span(path)


def describe(path: Path) -> Description:
    """Architecture from names, attributes and shapes; the tensors' bytes are not touched. Raises ``ConfigError``."""
    return _description(*_generator(path))


def read(path: Path) -> Checkpoint:
    """``G_ema`` with the names of our own networks. Raises ``ConfigError``."""
    generator, tensors = _generator(path)
    description = _description(generator, tensors)
    kept = {name: tensor for name, tensor in tensors.items() if not name.endswith("resample_filter")}
    check_growth(sum(tensor.size for tensor in kept.values()), path.stat().st_size)
    check_filters(tensors)
    return Checkpoint(description=description, tensors=torchfiles.floats(kept.items()))


def _generator(path: Path) -> tuple[Module, dict[str, Tensor]]:
    data = mapped(path)
    budget = Budget.of(len(data))
    root = Machine(data=data, names=names(budget), budget=budget).run()
    generator = root.get("G_ema") if isinstance(root, dict) else root
    if not isinstance(generator, Module) or generator.kind != "Generator":
        refuse("there is no 'G_ema' generator in the pickle")
    return generator, {rename(name): tensor for name, tensor in _tensors(generator, "", [MAX_MODULES])}


def _tensors(module: Module, prefix: str, left: list[int], depth: int = 0) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers of a module and all below it. ``left`` bounds what a module used many times can unfold to."""
    left[0] -= 1
    if left[0] < 0 or depth > 16:
        refuse(f"a network of more than {MAX_MODULES} modules or 16 levels")
    own = (module.get(place, dict, {}) for place in ("_parameters", "_buffers"))
    for name, value in chain.from_iterable(values.items() for values in own):
        left[0] -= 1
        if left[0] < 0 or len(prefix) > 1000:
            refuse(f"a network of more than {MAX_MODULES} modules and tensors, or with names longer than 1000 characters")
        if isinstance(value, Tensor):
            yield f"{prefix}{name}", value
    for name, child in module.children().items():
        yield from _tensors(child, f"{prefix}{name}.", left, depth + 1)


def _description(generator: Module, tensors: dict[str, Tensor]) -> Description:
    synthesis = generator.children().get("synthesis")
    if synthesis is None:
        refuse("the generator has no synthesis network")
    kept = {name: tensor.shape for name, tensor in tensors.items() if not name.endswith("resample_filter")}
    third = "input" in synthesis.children()
    arguments = _stylegan3(synthesis, kept) if third else _stylegan2(synthesis, kept)
    for name in [name for name in tensors if name not in kept]:
        if tensors[name].shape != FILTER.shape:
            refuse(f"resampling filter {name!r} has shape {tensors[name].shape}; 4×4 is expected")
    return Description(
        format="nvidia",
        family="stylegan3" if third else "stylegan2",
        arguments=arguments,
        labels=layouts.class_labels(arguments["c_size"]),
        tensors=len(kept),
        parameters=count_parameters(kept),
    )


def _stylegan2(synthesis: Module, shapes: layouts.Shapes) -> dict[str, Any]:
    blocks = [child for child in synthesis.children().values() if child.kind == "SynthesisBlock"]
    if not blocks:
        refuse("the synthesis network has no blocks")
    convs = [block.children().get("conv1") for block in blocks]
    clamps = {conv.get("conv_clamp", (int, float), None) for conv in convs if conv is not None}
    architectures = {block.get("architecture", str, "skip") for block in blocks}
    if len(clamps) > 1 or len(architectures) > 1:
        refuse("blocks of different architectures or clamps in one network")
    return layouts.stylegan2_arguments(
        shapes,
        architecture=architectures.pop(),
        conv_clamp=clamps.pop() if clamps else None,
        half_levels=sum(block.get("use_fp16", bool, False) for block in blocks),
    )


def _stylegan3(synthesis: Module, shapes: layouts.Shapes) -> dict[str, Any]:
    """The geometry that the constructor was given; where it was not told, the values of the original's signature."""
    first = next((child for child in synthesis.children().values() if child.kind == "SynthesisLayer"), None)
    if first is None:
        refuse("the synthesis network has no layers")
    given = synthesis.get("_init_kwargs", dict, {})

    def told(name: str, default: float) -> float:
        value = given.get(name, default)
        return value if isinstance(value, (int, float)) else default

    return layouts.stylegan3_arguments(
        shapes,
        size=synthesis.get("img_resolution", int, 0),
        layers=synthesis.get("num_layers", int, 14),
        critical=synthesis.get("num_critical", int, 2),
        margin=synthesis.get("margin_size", int, 10),
        output_scale=synthesis.get("output_scale", (int, float), 0.25),
        half_levels=synthesis.get("num_fp16_res", int, 4),
        conv_clamp=first.get("conv_clamp", (int, float), None),
        radial=bool(told("use_radial_filters", False)),
        first_cutoff=told("first_cutoff", 2),
        first_stopband=told("first_stopband", 2**2.1),
        last_stopband=told("last_stopband_rel", 2**0.3),
        taps=whole(told("filter_size", 6)),
        oversampling=whole(told("lrelu_upsampling", 2)),
    )


def whole(value: float) -> int:
    """Raises ``ConfigError`` for infinity and NaN."""
    return int(value) if isfinite(value) else refuse(f"{value} where a number is expected")


def rename(name: str) -> str:
    """The tensor's name in our network: StyleGAN3's layers are numbered there, not called after their size (``L3_36_512``)."""
    return re.sub(r"^synthesis\.L(\d+)_\d+_\d+\.", r"synthesis.layers.\1.", name)


def check_filters(tensors: dict[str, Tensor]) -> None:
    """Refuse a StyleGAN2 that resamples by another filter than the published ones; ours is built in."""
    for name, tensor in tensors.items():
        if name.endswith("resample_filter") and not np.allclose(tensor.array(), FILTER, atol=1e-4):
            refuse(f"resampling filter {name!r} is not the binomial one, which is the only one that is known here")
