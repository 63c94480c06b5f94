"""Directions in the space of styles: found by factorising a network's style layers, or read from files; NumPy alone.

A direction is a vector that is added to w, (w_size,), or to each level's style, (levels, w_size).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from api.conf import DirectionConf
from api.errors import BadInput, ConfigError
from api.models.arrays import read_arrays
from api.models.base import Array, Checkpoint, Info
from api.models.formats.layouts import stylegan3_layers
from api.models.jobs import Edit, Floats

COUNT = 10


@dataclass(frozen=True, kw_only=True)
class Direction:
    """``vector`` times ``strength`` is what an amount of 1 adds, at all levels or at ``levels`` alone."""

    name: str
    vector: Floats
    strength: float = 1.0
    description: str = ""
    levels: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if not np.isfinite(self.vector).all() or not np.isfinite(self.strength):
            raise ConfigError(f"direction {self.name!r} holds values that are not finite numbers")

    def tell(self) -> dict[str, Any]:
        """What web workers know of it."""
        levels = None if self.levels is None else list(self.levels)
        return {"name": self.name, "description": self.description, "strength": self.strength, "levels": levels}


def find_directions(checkpoint: Checkpoint, confs: Mapping[str, DirectionConf], info: Info, sample: Floats) -> dict[str, Direction]:
    """Those of the configuration, in its order, and then the checkpoint's own factors. Raises ``ConfigError``.

    ``sample`` (n, w_size) are w as the mapping network gives them, by which factors are measured.
    """
    bundles: dict[Path, Mapping[str, Array]] = {}
    found: dict[str, Direction] = {}
    for name, conf in confs.items():
        if conf.file not in bundles:
            bundles[conf.file] = read_arrays(conf.file).arrays
        arrays = bundles[conf.file]
        array = named(arrays, conf.entry or (name if name in arrays else None), f"direction {name!r}: {conf.file}")
        vector = fit(array, info.levels, info.w_size, name)
        found[name] = Direction(name=name, vector=vector, strength=conf.strength, description=conf.description)
    return found | {direction.name: direction for direction in factors(checkpoint, sample) if direction.name not in found}


def edit(styles: Floats, job: Edit, directions: Mapping[str, Direction]) -> Floats:
    """styles (levels, w_size) moved along all of the job's directions: their order does not matter, not even in the last bit."""
    for name in sorted(job.directions):
        styles = move(styles, directions[name], job.directions[name], job.layers.get(name))
    return styles


def move(styles: Floats, direction: Direction, amount: float, levels: Sequence[int] | None = None) -> Floats:
    """styles (levels, w_size) moved by ``amount`` at ``levels`` (the direction's own if ``None``). Raises ``BadInput``."""
    rows = list(direction.levels if levels is None and direction.levels is not None else range(len(styles)) if levels is None else levels)
    if not all(0 <= row < len(styles) for row in rows):
        raise BadInput(f"levels {rows} for direction {direction.name!r}; 0 to {len(styles) - 1} are there")
    if not np.isfinite(amount):
        raise BadInput(f"amount {amount} for direction {direction.name!r} is not a finite number")
    fit(direction.vector, len(styles), styles.shape[1], direction.name)
    step = np.float32(amount * direction.strength) * np.broadcast_to(direction.vector, styles.shape)
    moved = styles.astype(np.float32, copy=True)
    moved[rows] += step[rows]
    return moved


def fit(array: Array, levels: int, w_size: int, name: str = "") -> Floats:
    """``array`` without leading axes of one, as float32 (w_size,) or (levels, w_size). Raises ``ConfigError``."""
    vector = np.asarray(array)
    while vector.ndim > 1 and vector.shape[0] == 1:
        vector = vector[0]
    if vector.dtype.kind not in "fiu" or vector.shape not in ((w_size,), (levels, w_size)):
        found = f"{vector.dtype} {np.shape(array)}"
        raise ConfigError(f"direction {name!r} is {found}; numbers of shape ({w_size},) or ({levels}, {w_size}) are expected")
    return vector.astype(np.float32)


def factorise(weights: Sequence[Array]) -> tuple[Floats, Floats]:
    """Unit directions (k, w_size), k = w_size, that move the styles of the given layers most, the strongest first; and their shares.

    ``weights`` are the layers' affine weights, (channels, w_size) each. Directions are the eigenvectors of AᵀA with A the rows of all
    layers, each of unit length (Shen and Zhou, "Closed-Form Factorization of Latent Semantics in GANs", 2021, equation 5). A share is an
    eigenvalue over their sum. Of the two signs the one whose largest component is positive is taken.
    """
    if not weights or any(weight.ndim != 2 or weight.shape[1] != weights[0].shape[1] for weight in weights):
        raise ValueError("at least one weight is needed, all of shape (channels, w_size)")
    rows = np.concatenate([np.asarray(weight, np.float64) for weight in weights])
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    values, vectors = np.linalg.eigh(rows.T @ rows)
    vectors = vectors.T[::-1]
    signs = np.sign(vectors[np.arange(len(vectors)), np.abs(vectors).argmax(axis=1)])
    shares = np.maximum(values[::-1], 0)
    return (vectors * signs[:, None]).astype(np.float32), (shares / max(shares.sum(), 1e-300)).astype(np.float32)


def factors(checkpoint: Checkpoint, sample: Floats, count: int = COUNT) -> list[Direction]:
    """The ``count`` strongest directions of a whole network: ``sefa-1``, ``sefa-2``, …

    They have unit length, and their strength is the ``deviation`` of ``sample`` (n, w_size) along them.
    """
    vectors, shares = factorise([weight for weights in style_weights(checkpoint) for weight in weights])
    return [
        Direction(
            name=f"sefa-{i}",
            vector=vector,
            strength=deviation(vector, sample),
            description=f"factor {i} of the style layers: {share:.1%} of what they respond to",
        )
        for i, (vector, share) in enumerate(zip(vectors[:count], shares, strict=False), start=1)
    ]


def deviation(vector: Floats, sample: Floats) -> float:
    """The standard deviation of vᵀw over a sample of w (n, w_size), to three digits: how far pictures differ along v by themselves.

    Fewer digits than a float has, so that it does not depend on the order in which a processor sums.
    """
    return float(f"{np.std(sample.astype(np.float64) @ vector.astype(np.float64)):.3g}")


def style_weights(checkpoint: Checkpoint) -> list[list[Array]]:
    """For each level (row of the styles) the affine weights (channels, w_size) that it drives. Raises ``ConfigError``."""
    finders = {"stylegan2": _stylegan2_layers, "stylegan3": _stylegan3_layers, "precure": _precure_layers}
    finder = finders.get(checkpoint.description.family)
    if finder is None:
        raise ConfigError(f"family {checkpoint.description.family!r} has no style layers; known: {', '.join(finders)}")
    tensors = checkpoint.tensors
    return [[tensors[f"{name}.affine.weight"] for name in names] for names in finder(checkpoint)]


def _stylegan2_layers(checkpoint: Checkpoint) -> list[list[str]]:
    """A convolution for each row, and to-RGB with the row of the next convolution."""
    rows: list[list[str]] = [[]]
    for i in range(len(checkpoint.description.arguments["widths"])):
        block = f"synthesis.b{4 << i}"
        for name in ("conv0", "conv1") if i else ("conv1",):
            rows[-1].append(f"{block}.{name}")
            rows.append([])
        if f"{block}.torgb.affine.weight" in checkpoint.tensors:
            rows[-1].append(f"{block}.torgb")
    return rows


def _stylegan3_layers(checkpoint: Checkpoint) -> list[list[str]]:
    count = len(stylegan3_layers(checkpoint.description.arguments))
    return [["synthesis.input"], *([f"synthesis.layers.{i}"] for i in range(count))]


def _precure_layers(checkpoint: Checkpoint) -> list[list[str]]:
    return [
        [
            name.removesuffix(".affine.weight")
            for name in checkpoint.tensors
            if name.startswith(f"synthesis.levels.{i}.") and "affine.weight" in name
        ]
        for i in range(checkpoint.description.arguments["levels"])
    ]


def named(arrays: Mapping[str, Array], entry: str | None, source: str) -> Array:
    """The one array of a file, or that called ``entry``. Raises ``ConfigError`` if there is no telling which."""
    if entry is None and len(arrays) == 1:
        return next(iter(arrays.values()))
    if entry is not None and entry in arrays:
        return arrays[entry]
    wanted = "one of them must be named" if entry is None else f"{entry!r} is not among them"
    raise ConfigError(f"{source} holds the arrays {', '.join(sorted(arrays)[:20])}; {wanted}")
