"""Blending and mixing of styles."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from api.errors import BadArray, BadInput
from api.models.styles import blend, broadcast, mix, pick
from tests import golden

ROWS = list(np.random.default_rng(3).standard_normal((5, 7)).astype(np.float32))


def test_blend_is_the_mean() -> None:
    assert np.allclose(blend(ROWS), np.mean(ROWS, axis=0), atol=1e-6)
    assert blend(ROWS).dtype == np.float32
    assert np.array_equal(blend(ROWS[:1]), ROWS[0])


def test_weights_are_relative() -> None:
    assert np.allclose(blend(ROWS[:2], [3, 1]), 0.75 * ROWS[0] + 0.25 * ROWS[1], atol=1e-6)
    assert np.allclose(blend(ROWS[:2], [2, -1]), 2 * ROWS[0] - ROWS[1], atol=1e-6)
    assert np.allclose(blend(ROWS, [5] * 5), blend(ROWS), atol=1e-6)


@pytest.mark.parametrize("weights", [[1], [1, -1], [0, 0], [float("nan"), 1], [float("inf"), 1]])
def test_unusable_weights(weights: list[float]) -> None:
    with pytest.raises(BadInput, match="weights"):
        blend(ROWS[:2], weights)


@pytest.mark.parametrize(
    ("count", "levels", "taken"), [(1, 4, "0000"), (2, 4, "0011"), (3, 4, "0012"), (4, 4, "0123"), (2, 5, "00011"), (3, 7, "0001122")]
)
def test_mix_divides_the_levels(count: int, levels: int, taken: str) -> None:
    assert np.array_equal(mix(ROWS[:count], levels), np.stack([ROWS[int(i)] for i in taken]))


def test_mix_as_the_golden_data_do() -> None:
    data = golden.arrays("precure_mnist")
    for count in range(1, 5):
        assert np.array_equal(mix(list(data["w"][:count]), 4), data["w"][data[f"mix{count}_levels"]])


def test_more_styles_than_levels() -> None:
    with pytest.raises(BadInput, match="5 styles for 4 levels"):
        mix(ROWS, 4)


def test_pick_takes_what_is_named() -> None:
    assert np.array_equal(pick(ROWS, [4, 0, 0], 3), np.stack([ROWS[4], ROWS[0], ROWS[0]]))
    for indices in ([0, 1], [0, 5, 0], [0, -1, 0]):
        with pytest.raises(BadInput, match="level ind"):
            pick(ROWS, indices, 3)


def test_broadcast_repeats() -> None:
    assert np.array_equal(broadcast(ROWS[0], 3), np.stack([ROWS[0]] * 3))


def test_unlike_styles() -> None:
    with pytest.raises(BadArray, match="shape"):
        blend([ROWS[0], ROWS[1][:3]])
    with pytest.raises(BadArray, match="shape"):
        mix([ROWS[0][None]], 2)
    with pytest.raises(BadInput, match="no styles"):
        mix([], 2)


def test_web_workers_can_use_it_without_torch() -> None:
    code = (
        "import sys, api.models.styles, api.models.latents, api.models.registry as r; r.formats.known(); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
