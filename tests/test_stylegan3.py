"""StyleGAN3: what the reference implementation computes, moved pictures, and pictures that depend on nothing but their job."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from api.conf import ModelConf
from api.errors import BadInput, ConfigError
from api.models import formats
from api.models.base import Checkpoint, Model, Place, go_on
from api.models.families import stylegan3
from api.models.formats import layouts, safetensors
from api.models.jobs import Generate, Job, Synthesize
from api.models.nets import alias_free
from tests.checkpoints import THIRD, made

GOLDEN = Path(os.environ.get("GOLDEN_DIR", "../shared/golden"))
TOLERANCES = {"stylegan3t_64": 1e-4, "stylegan3r_64": 1e-3}

needs_golden = pytest.mark.skipif(not GOLDEN.is_dir(), reason=f"no golden data at {GOLDEN} (GOLDEN_DIR)")


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def loaded(checkpoint: Checkpoint, **kwargs: Any) -> Model:
    return stylegan3.load(checkpoint, ModelConf(file=Path("x"), **kwargs), Place(id="x"))


def small(**kwargs: Any) -> Checkpoint:
    """A tiny network whose description tells the whole geometry, as readers tell it."""
    geometry: dict[str, Any] = {"critical": 2, "output_scale": 0.25, "conv_clamp": 256, "radial": False, "taps": 6, "oversampling": 2}
    geometry |= {"first_cutoff": 2, "first_stopband": 2**2.1, "last_stopband": 2**0.3, **THIRD, **kwargs}
    checkpoint = made("stylegan3", **geometry)
    names = {name: array.shape for name, array in checkpoint.tensors.items()}
    told = {name: value for name, value in geometry.items() if name not in stylegan3.MAPPING}
    arguments = layouts.stylegan3_arguments(names, layers=len(geometry["widths"]), **told)
    description = checkpoint.description.__class__(
        format="test", family="stylegan3", arguments=arguments, labels=layouts.class_labels(arguments["c_size"])
    )
    return Checkpoint(description=description, tensors=checkpoint.tensors)


def render(model: Model, *jobs: Job) -> list[Any]:
    return list(model.run([model.prepare(job) for job in jobs], go_on))


def gap(found: torch.Tensor, expected: Any) -> float:
    return float(np.abs(found.detach().numpy() - expected).max())


@needs_golden
@pytest.mark.parametrize("name", list(TOLERANCES))
def test_numbers_of_the_reference(name: str) -> None:
    checkpoint = formats.find(path := GOLDEN / "pkl" / f"{name}.pkl").read(path)
    network, data = stylegan3.build(checkpoint.description.arguments, checkpoint.tensors), np.load(GOLDEN / f"{name}.npz")
    tolerance = TOLERANCES[name]
    with torch.no_grad():
        ws = torch.from_numpy(data["ws"])
        w = network.mapping(torch.from_numpy(data["z"]), torch.from_numpy(data["c"]) if network.c_size else None)
        assert gap(w[:, None].expand_as(ws), data["ws"]) < 1e-5
        truncated = network.mapping.w_avg.lerp(w, 0.7)[:, None].expand_as(ws)
        assert gap(truncated, data["ws_psi07"]) < 1e-5
        assert gap(network.synthesis(ws), data["image"]) < tolerance
        assert gap(network.synthesis(truncated), data["image_psi07"]) < tolerance
        assert gap(network.synthesis(torch.from_numpy(data["mixed_ws"])), data["image_mixed"]) < tolerance


@needs_golden
@pytest.mark.parametrize("name", list(TOLERANCES))
def test_the_family_gives_the_reference_pictures(name: str) -> None:
    checkpoint = formats.find(path := GOLDEN / "pkl" / f"{name}.pkl").read(path)
    data = np.load(GOLDEN / f"{name}.npz")
    model = loaded(checkpoint, truncation="global")
    labels = [str(row.argmax()) if row.size else None for row in data["c"]]
    jobs = [Generate(model="x", seed=0, sd=0.0, latent=z, label=label, psi=0.7) for z, label in zip(data["z"], labels, strict=True)]
    found = np.stack([output.image for output in render(model, *jobs)])
    expected = (data["image_psi07"].astype(np.float64) * 127.5 + 128).clip(0, 255).astype(np.uint8).transpose(0, 2, 3, 1)
    assert np.abs(found.astype(int) - expected).max() <= 1
    assert (found != expected).mean() < 1e-3


@pytest.mark.parametrize("kind", ["t", "r"])
def test_a_picture_is_the_same_in_any_batch_and_on_any_number_of_threads(kind: str) -> None:
    model = loaded(small(radial=True, kernel=1, c_size=2) if kind == "r" else small())
    jobs: list[Job] = [Generate(model="x", seed=i, rotate=17.0 * i, translate=(i / 7, 0.1)) for i in range(5)]
    expected = [output.image for output in render(model, *jobs)]
    assert expected[0].std() > 1
    for count, size in itertools.product((1, 2), (1, 2, 3)):
        torch.set_num_threads(count)
        found = [output.image for i in range(0, len(jobs), size) for output in render(model, *jobs[i : i + size])]
        assert all(map(np.array_equal, found, expected)), f"batches of {size} on {count} threads"


@needs_golden
def test_pictures_turn_and_move() -> None:
    """The rotation-equivariant network turned by a quarter is the picture turned; a shift by a quarter side moves it so far."""
    checkpoint = formats.find(path := GOLDEN / "pkl" / "stylegan3r_64.pkl").read(path)
    model = loaded(checkpoint)
    common: dict[str, Any] = {"model": "x", "seed": 4, "label": "0"}
    plain, turned, moved = (
        output.image.astype(float)
        for output in render(model, Generate(**common), Generate(**common, rotate=90.0), Generate(**common, translate=(0.25, 0.0)))
    )
    middle = slice(12, 52)
    quarter = np.rot90(plain)
    assert np.abs(turned - quarter)[middle, middle].mean() < 0.1 * np.abs(turned - plain)[middle, middle].mean()
    assert np.abs(turned - quarter)[middle, middle].mean() < np.abs(turned - np.rot90(plain, -1))[middle, middle].mean()
    right = np.roll(plain, 16, axis=1)
    assert np.abs(moved - right)[middle, 20:52].mean() < 0.1 * np.abs(moved - plain)[middle, 20:52].mean()


@pytest.mark.parametrize("changes", [{}, {"radial": True, "kernel": 1, "c_size": 2}])
def test_converted_files_give_the_same_bytes(changes: dict[str, Any], tmp_path: Path) -> None:
    checkpoint = small(**changes)
    path = tmp_path / "x.safetensors"
    safetensors.write(path, checkpoint)
    jobs = [Generate(model="x", seed=i) for i in range(2)]
    first, second = (render(loaded(each), *jobs) for each in (checkpoint, formats.find(path).read(path)))
    assert all(np.array_equal(a.image, b.image) for a, b in zip(first, second, strict=True))


def test_styles_make_the_picture_again_and_info_tells_the_network() -> None:
    model = loaded(small())
    (first,) = render(model, Generate(model="x", seed=5, psi=0.5))
    (again,) = render(model, Synthesize(model="x", seed=5, styles=first.styles))
    assert np.array_equal(first.image, again.image)
    assert first.styles.shape == (model.info.levels, model.info.w_size) == (6, 16)
    assert model.info.width == model.info.height == 16
    assert model.info.extra["movable"] is True
    with pytest.raises(BadInput):
        model.prepare(Generate(model="x", rotate=float("nan")))
    with pytest.raises(BadInput):
        model.prepare(Generate(model="x", translate=(1.0,)))


def test_wrong_checkpoints_are_refused() -> None:
    checkpoint = small()
    for arguments in ({"margin": -5}, {"critical": 9}, {"taps": "six"}, {"widths": [8, 8]}, {"size": 10**9}):
        description = checkpoint.description.__class__(
            format="test", family="stylegan3", arguments={**checkpoint.description.arguments, **arguments}
        )
        with pytest.raises(ConfigError):
            loaded(Checkpoint(description=description, tensors=checkpoint.tensors))


def test_filters_are_low_passes() -> None:
    flat = alias_free.lowpass(24, 4.0, 12.0, 64.0)
    assert abs(flat.sum() - 1) < 1e-12
    assert np.allclose(flat, flat[::-1])
    radial = alias_free.radial_lowpass(24, 4.0, 12.0, 64.0)
    assert abs(radial.sum() - 1) < 1e-12
    assert np.allclose(radial, np.rot90(radial))
    gains = np.abs(np.fft.rfft(flat, 4096))
    frequencies = np.fft.rfftfreq(4096, 1 / 64)
    assert gains[frequencies < 0.5].min() > 0.95
    assert gains[frequencies > 12].max() < 0.05
    x = np.array([0.0, 1.0, 2.0, 5.0, 10.0, 50.0])  # DLMF table values of the Bessel function
    known = [0.0, 0.44005058574493355, 0.5767248077568734, -0.3275791375914652, 0.04347274616886144, -0.09751182812517514]
    assert np.allclose(alias_free.bessel_j1(x), known, atol=1e-12)
