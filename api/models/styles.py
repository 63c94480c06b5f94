"""Arithmetic on styles.

A style is w, (w_size,), the same at all levels, or w+, (levels, w_size); where both kinds meet, w counts as w+ with equal rows.
``styles`` for synthesis have one row per level, (levels, w_size).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from api.errors import BadArray, BadInput
from api.models.jobs import Floats


def blend(styles: Sequence[Floats], weights: Sequence[float] | None = None) -> Floats:
    """The weighted mean of n styles, equal weights if none are given. Raises ``BadInput`` where the weights' sum vanishes."""
    rows = stack(styles)
    if weights is None:
        return rows.mean(axis=0, dtype=np.float64).astype(np.float32)
    if len(weights) != len(rows):
        raise BadInput(f"{len(weights)} weights for {len(rows)} styles; there must be as many")
    factors = np.asarray(weights, np.float64)
    total = factors.sum()
    if not np.isfinite(factors).all() or abs(total) < 1e-6 * max(1.0, np.abs(factors).sum()):
        raise BadInput(f"weights {list(weights)} have no usable sum; finite numbers whose sum is not zero are expected")
    return (factors @ rows.reshape(len(rows), -1) / total).astype(np.float32).reshape(rows.shape[1:])


def mix(styles: Sequence[Floats], levels: int) -> Floats:
    """(levels, w_size): level j of L takes style ⌊j·n/L⌋ of n. Raises ``BadInput`` for more styles than levels."""
    if len(styles) > levels:
        raise BadInput(f"{len(styles)} styles for {levels} levels; at most one style per level can be mixed")
    return take(styles, [j * len(styles) // levels for j in range(levels)])


def pick(styles: Sequence[Floats], indices: Sequence[int], levels: int) -> Floats:
    """(levels, w_size): level j takes style ``indices[j]``. Raises ``BadInput`` for a wrong number of indices or one out of range."""
    if len(indices) != levels:
        raise BadInput(f"{len(indices)} level indices for a model of {levels} levels; there must be one per level")
    for index in indices:
        if not 0 <= index < len(styles):
            raise BadInput(f"level index {index} is out of range; there are {len(styles)} styles, counted from 0")
    return take(styles, indices)


def take(styles: Sequence[Floats], indices: Sequence[int]) -> Floats:
    """(levels, w_size): level j takes what style ``indices[j]`` has there. Raises ``BadArray`` where a w+ has other levels."""
    rows = stack(styles)
    if rows.ndim == 2:
        return rows[list(indices)]
    if rows.shape[1] != len(indices):
        raise BadArray(f"a style has shape {rows.shape[1:]}; {len(indices)} levels are expected")
    return rows[list(indices), range(len(indices))]


def broadcast(style: Floats, levels: int) -> Floats:
    """(levels, w_size): the same style at every level; of w+, each level's own."""
    return take([style], [0] * levels)


def stack(styles: Sequence[ArrayLike]) -> NDArray[np.float32]:
    """(n, w_size), or (n, levels, w_size) if any is w+. Raises ``BadInput`` without any style, ``BadArray`` for unlike ones."""
    if not len(styles):
        raise BadInput("no styles; at least one is expected")
    rows = [np.asarray(style, np.float32) for style in styles]
    whole = max((row.shape for row in rows), key=len)
    for row in rows:
        if row.ndim not in (1, 2) or row.shape != whole[-row.ndim :]:
            raise BadArray(f"a style has shape {row.shape} beside one of {whole}; all must be w or w+ and of one size")
    return np.stack([np.broadcast_to(row, whole) for row in rows])
