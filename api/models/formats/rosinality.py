"""Torch files of the many projects that grew from one widely used PyTorch StyleGAN2 (github.com/rosinality/stylegan2-pytorch).

The file is a dictionary whose ``g_ema`` is the generator's state and whose ``latent_avg`` is the mean w. The architecture is told by the
tensors' names and shapes alone. What they do not tell, and what is then assumed, is said in the description's notes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from api.models.base import Array, Checkpoint, Description, count_parameters
from api.models.formats import archives, layouts, torchfiles
from api.models.formats.files import check_growth, mapped, span
from api.models.formats.pickles import Budget, refuse
from api.models.formats.torchfiles import Tensor

MARK = b"conv1.conv.modulation.weight"
PLACES = ("g_ema", "g", "generator")
"""Where the generator's state may stand, the best first; else the root itself is looked at."""
KERNEL = np.outer([1, 3, 3, 1], [1, 3, 3, 1]) / 64
HEAD = 4 << 20  # the names stand before the numbers


def sniff(path: Path, head: bytes) -> bool:
    """A torch file with this network's names, outside of an encoder."""
    return is_torch(head) and MARK in (names := span(path, HEAD)) and b"decoder." + MARK not in names


def is_torch(head: bytes) -> bool:
    """A legacy stream of ``torch.save`` or a zip archive."""
    return torchfiles.is_legacy(head) or head[:4] == archives.MAGIC


def describe(path: Path) -> Description:
    """Architecture from names and shapes; of the numbers only one matrix is looked at. Raises ``ConfigError``."""
    return description_of(state_of(load(path)), "rosinality")


def read(path: Path) -> Checkpoint:
    """The moving average with the names of our own network. Raises ``ConfigError``."""
    return checkpoint_of(state_of(load(path)), "rosinality", path)


def load(path: Path) -> dict[Any, Any]:
    """The file's dictionary, tensors as stubs."""
    data = mapped(path)
    root = torchfiles.load(data, Budget.of(len(data)))
    if not isinstance(root, dict):
        refuse("the torch file does not hold a dictionary")
    return root


@dataclass(frozen=True)
class Source:
    """A generator's tensors by the names of that project, the mean w if there is one, and what had to be assumed."""

    state: Mapping[str, Tensor]
    mean: Tensor | None
    notes: tuple[str, ...] = ()


def state_of(root: Mapping[Any, Any]) -> Source:
    place = next((place for place in PLACES if isinstance(root.get(place), dict)), None)
    notes = () if place == "g_ema" else (f"no moving average 'g_ema'; {'the root' if place is None else repr(place)} is taken",)
    mean = root.get("latent_avg")
    return Source(tensors_in(root if place is None else root[place]), mean if isinstance(mean, Tensor) else None, notes)


def tensors_in(state: Mapping[Any, Any], prefix: str = "") -> dict[str, Tensor]:
    """The tensors whose names start with ``prefix``, without it and without what ``DataParallel`` puts before."""
    found = {str(name).removeprefix("module."): value for name, value in state.items() if isinstance(value, Tensor)}
    return {name.removeprefix(prefix): value for name, value in found.items() if name.startswith(prefix)}


def description_of(source: Source, form: str) -> Description:
    shapes = {ours: shape for ours, (_, shape) in places(source.state).items()}
    w_size = shapes.get("mapping.fc0.weight", (0,))[0]
    arguments = layouts.stylegan2_arguments({**shapes, "mapping.w_avg": (w_size,)})
    if source.mean is not None and (source.mean.size % w_size or source.mean.size > 64 * w_size):
        refuse(f"latent_avg has shape {source.mean.shape}; one or several rows of {w_size} are expected")
    return Description(
        format=form,
        family="stylegan2",
        arguments=arguments,
        tensors=len(shapes) + (source.mean is not None),
        parameters=count_parameters(shapes),
        notes=(*source.notes, *assumptions(source)),
    )


def assumptions(source: Source) -> tuple[str, ...]:
    """What neither names nor shapes tell."""
    notes = []
    if source.mean is None:
        notes.append("no 'latent_avg'; the mean w is computed when the model is loaded")
    spread = float(source.state["style.1.weight"].array().astype(np.float64).std())
    if not 30 < spread < 300:  # drawn with a deviation of 1 / rate, and training changes it little
        notes.append(
            f"ambiguous: the mapping network's rate is taken as 0.01, but its weights deviate by {spread:.3g} instead of about 100"
        )
    return tuple(notes)


def checkpoint_of(source: Source, form: str, path: Path) -> Checkpoint:
    description = description_of(source, form)
    found = places(source.state)
    check_growth(sum(math.prod(shape) for _, shape in found.values()), path.stat().st_size)
    check_kernels(source.state)
    tensors: dict[str, Array] = {
        ours: source.state[theirs].array().astype(np.float32, copy=False).reshape(shape) for ours, (theirs, shape) in found.items()
    }
    if source.mean is not None:
        rows = source.mean.array().astype(np.float64).reshape(-1, description.arguments["w_size"])
        tensors["mapping.w_avg"] = rows.mean(axis=0).astype(np.float32)
    return Checkpoint(description=description, tensors=tensors)


def check_kernels(state: Mapping[str, Tensor]) -> None:
    """Refuse other resampling filters than the one that ours has built in; theirs are stored with a gain of four."""
    for name, tensor in state.items():
        if name.endswith(".kernel") and not (tensor.shape == (4, 4) and np.allclose(tensor.array(), KERNEL * 4, atol=1e-3)):
            refuse(f"resampling filter {name!r} is not the binomial one, which is the only one that is known here")


def places(state: Mapping[str, Tensor]) -> dict[str, tuple[str, layouts.Shape]]:
    """Our name ↦ theirs and the shape here: theirs have a leading axis of one in many places."""
    found: dict[str, tuple[str, layouts.Shape]] = {}
    for name, tensor in state.items():
        if not name.endswith(".kernel"):
            ours = translate(name)
            found[ours] = (name, squeeze(ours, tensor.shape))
    return found


def squeeze(ours: str, shape: layouts.Shape) -> layouts.Shape:
    axes = 0 if ours.endswith("noise_strength") else 1 if ours.endswith("bias") else 2 if "noise_const" in ours or "affine" in ours else 4
    axes = 3 if ours.endswith("const") and "noise" not in ours else 2 if ours.startswith("mapping") and ours.endswith("weight") else axes
    if axes == 1:
        return (math.prod(shape),)
    if len(shape) < axes or set(shape[: len(shape) - axes]) - {1}:
        refuse(f"the tensor for {ours!r} has shape {shape}")
    return shape[len(shape) - axes :]


LAYER = {
    "conv.weight": "weight",
    "conv.modulation.weight": "affine.weight",
    "conv.modulation.bias": "affine.bias",
    "noise.weight": "noise_strength",
    "activate.bias": "bias",
    "bias": "bias",
}


def translate(name: str) -> str:
    """Their names count layers, ours tell resolutions: ``convs.0`` and ``convs.1`` are the two of 8×8, ``to_rgbs.0`` its to-RGB."""
    if name == "input.input":
        return "synthesis.b4.const"
    if match := re.fullmatch(r"style\.([1-9]\d?)\.(weight|bias)", name):
        return f"mapping.fc{int(match[1]) - 1}.{match[2]}"
    if match := re.fullmatch(r"noises\.noise_(\d{1,2})", name):
        i = int(match[1])
        return f"synthesis.b{4 << (i + 1) // 2}.conv{1 - i % 2}.noise_const"
    if match := re.fullmatch(r"(conv1|to_rgb1|convs\.\d{1,2}|to_rgbs\.\d{1,2})\.(.+)", name):
        kind, _, number = match[1].partition(".")
        i = int(number or -1)
        side = 4 if i < 0 else 8 << (i // 2 if kind == "convs" else i)
        place = "torgb" if kind.startswith("to_rgb") else "conv1" if i < 0 else f"conv{i % 2}"
        if match[2] in LAYER:
            return f"synthesis.b{side}.{place}.{LAYER[match[2]]}"
    refuse(f"tensor {name[:80]!r} does not belong to this StyleGAN2")
