"""The formats of StyleGAN2 and StyleGAN3 checkpoints: each file written, found by its content, read, and the same numbers come out."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from api.conf import ModelConf
from api.errors import ConfigError
from api.models import formats
from api.models.base import Checkpoint, Place, count_parameters, go_on
from api.models.families import stylegan2
from api.models.formats import layouts, safetensors
from api.models.formats.nvidia import rename
from api.models.jobs import Generate, Noise
from tests import checkpoints
from tests.checkpoints import SMALL, THIRD, made

GOLDEN = Path(os.environ.get("GOLDEN_DIR", "../shared/golden"))
SEED = 20240608
NOISES: tuple[Noise, ...] = ("random", "const", "none")

needs_golden = pytest.mark.skipif(not GOLDEN.is_dir(), reason=f"no golden data at {GOLDEN} (GOLDEN_DIR)")

Write = Callable[[Path, Checkpoint], None]
WRITERS: dict[str, Write] = {
    "nvidia": checkpoints.write_nvidia,
    "tensorflow": checkpoints.write_tensorflow,
    "rosinality": checkpoints.write_rosinality,
    "rosinality legacy": partial(checkpoints.write_rosinality, zipped=False),
    "encoder4editing": checkpoints.write_encoder4editing,
    "encoder4editing legacy": partial(checkpoints.write_encoder4editing, zipped=False),
}


@pytest.fixture(scope="module", params=list(WRITERS))
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Checkpoint]:
    path = tmp_path_factory.mktemp("formats") / "whatever.bin"
    checkpoint = made("stylegan2", **SMALL)
    WRITERS[request.param](path, checkpoint)
    return request.param.split()[0], path, checkpoint


def test_a_file_is_found_by_content_and_gives_the_same_arrays(written: tuple[str, Path, Checkpoint]) -> None:
    name, path, checkpoint = written
    found = formats.find(path)
    assert found is formats.known()[name]
    read = found.read(path)
    assert read.description.format == name
    assert read.description.family == "stylegan2"
    assert read.description.arguments == checkpoint.description.arguments
    assert set(read.tensors) == set(checkpoint.tensors)
    for key, array in checkpoint.tensors.items():
        tolerance = 1e-6 if key.endswith("affine.bias") else 0  # TensorFlow stores them less one, which rounds
        assert float(np.abs(np.subtract(read.tensors[key], array)).max()) <= tolerance, key
        assert read.tensors[key].dtype == np.float32


def test_a_description_needs_no_weights_and_tells_the_same(written: tuple[str, Path, Checkpoint]) -> None:
    _, path, checkpoint = written
    module = formats.find(path)
    assert module.describe(path) == module.read(path).description
    assert module.describe(path).tensors == len(checkpoint.tensors)
    assert module.describe(path).parameters == count_parameters({name: array.shape for name, array in checkpoint.tensors.items()})


def test_a_converted_file_has_the_same_bytes(written: tuple[str, Path, Checkpoint], tmp_path: Path) -> None:
    _, path, _ = written
    read = formats.find(path).read(path)
    copy = tmp_path / "copy.safetensors"
    safetensors.write(copy, read)
    again = formats.find(copy).read(copy)
    assert again.description.arguments == read.description.arguments
    for key, array in read.tensors.items():
        assert np.asarray(again.tensors[key]).tobytes() == array.tobytes()
        assert again.tensors[key].shape == array.shape


def test_damaged_files_are_refused_or_read_but_nothing_else(written: tuple[str, Path, Checkpoint], tmp_path: Path) -> None:
    name, path, _ = written
    module, content = formats.known()[name], path.read_bytes()
    print("seed", SEED)
    draw = random.Random(SEED)
    damaged = tmp_path / "damaged.bin"
    refused = 0
    for i in range(120):
        changed = bytearray(content)
        if i % 3 == 0:
            del changed[draw.randrange(len(changed)) :]
        else:
            where = draw.randrange(min(len(changed), 20_000))
            changed[where : where + draw.randrange(1, 4)] = draw.randbytes(draw.randrange(1, 4))
        damaged.write_bytes(changed)
        try:
            module.read(damaged)
        except ConfigError:
            refused += 1
    assert refused > 40


@pytest.mark.parametrize("architecture", layouts.ARCHITECTURES)
def test_nvidia_files_of_every_architecture(architecture: str, tmp_path: Path) -> None:
    checkpoint = made("stylegan2", **SMALL, c_size=3, architecture=architecture, conv_clamp=256)
    path = tmp_path / "network.pkl"
    checkpoints.write_nvidia(path, checkpoint)
    read = formats.find(path).read(path)
    assert read.description.arguments == checkpoint.description.arguments
    assert read.description.labels == ("0", "1", "2")
    assert all(np.array_equal(read.tensors[key], array) for key, array in checkpoint.tensors.items())


def test_what_is_not_told_is_said(tmp_path: Path) -> None:
    checkpoint = made("stylegan2", **SMALL)
    path = tmp_path / "x.pt"
    state = checkpoints.rosinality_state(checkpoint)
    torch.save({"g": state}, path)
    notes = formats.find(path).describe(path).notes
    assert any("g_ema" in note for note in notes)
    assert any("latent_avg" in note for note in notes)
    assert "mapping.w_avg" not in formats.find(path).read(path).tensors
    torch.save({"g_ema": state | {"style.1.weight": state["style.1.weight"] / 100}}, path)
    assert any("ambiguous" in note for note in formats.find(path).describe(path).notes)


def test_half_precision_files_become_float32(tmp_path: Path) -> None:
    state = checkpoints.rosinality_state(made("stylegan2", **SMALL))
    for kind in (torch.float16, torch.bfloat16, torch.float64):
        path = tmp_path / "half.pt"
        torch.save({"g_ema": {name: value.to(kind) for name, value in state.items()}}, path)
        weight = formats.find(path).read(path).tensors["synthesis.b8.conv1.weight"]
        assert weight.dtype == np.float32
        assert np.array_equal(weight, state["convs.1.conv.weight"][0].to(kind).float().numpy())


@pytest.mark.parametrize("change", ["missing", "extra", "shape", "kernel"])
def test_files_with_other_tensors_are_refused(change: str, tmp_path: Path) -> None:
    state = checkpoints.rosinality_state(made("stylegan2", **SMALL))
    if change == "missing":
        del state["convs.2.conv.weight"]
    elif change == "extra":
        state["convs.3.conv.extra"] = torch.zeros(3)
    elif change == "shape":
        state["convs.2.conv.weight"] = state["convs.2.conv.weight"][:, :, :1]
    else:
        state["convs.0.conv.blur.kernel"] = torch.ones(4, 4)
    path = tmp_path / "x.pt"
    torch.save({"g_ema": state}, path)
    with pytest.raises(ConfigError, match=r"convs\.|synthesis\.b16|kernel"):
        formats.find(path).read(path)


def test_names_that_only_look_like_blocks_are_none() -> None:
    shapes = {name: array.shape for name, array in made("stylegan2", **SMALL).tensors.items()}
    with pytest.raises(ConfigError, match=r"resolutions \[\]"):
        layouts.stylegan2_arguments({"synthesis.bfoo.conv1.weight": (1, 1, 3, 3)})
    with pytest.raises(ConfigError, match=r"synthesis\.bfoo"):
        layouts.stylegan2_arguments(shapes | {"synthesis.bfoo.conv1.weight": (1, 1, 3, 3)})


GOLDENS = [
    "stylegan2ada_uncond64",
    "stylegan2ada_cond32",
    "stylegan2ada_resnet32",
    "stylegan3code_sg2_64",
    "stylegan3t_64",
    "stylegan3r_64",
]


@needs_golden
@pytest.mark.parametrize("name", GOLDENS)
def test_published_structure_gives_the_published_numbers(name: str) -> None:
    path = GOLDEN / "pkl" / f"{name}.pkl"
    module = formats.find(path)
    assert module is formats.known()["nvidia"]
    read = module.read(path)
    golden = np.load(GOLDEN / f"{name}.npz")
    state = {key[6:]: golden[key] for key in golden.files if key.startswith("state/") and not key.endswith("resample_filter")}
    assert {rename(key) for key in state} == set(read.tensors)
    assert all(np.array_equal(read.tensors[rename(key)], array) for key, array in state.items())
    assert read.description.arguments["conv_clamp"] == (None if name in ("stylegan2ada_uncond64", "stylegan2ada_resnet32") else 256)


@needs_golden
def test_tensorflow_file_has_the_weights_of_its_torch_twin() -> None:
    path = GOLDEN / "pkl" / "stylegan2_tf_uncond64.pkl"
    assert formats.find(path) is formats.known()["tensorflow"]
    read = formats.find(path).read(path)
    other = formats.known()["nvidia"].read(GOLDEN / "pkl" / "stylegan2ada_uncond64.pkl")
    assert read.description.arguments == other.description.arguments
    assert all(np.array_equal(read.tensors[key], array) for key, array in other.tensors.items())


@needs_golden
def test_filters_are_designed_as_the_originals_are() -> None:
    for name in ("stylegan3t_64", "stylegan3r_64"):
        read = formats.known()["nvidia"].read(GOLDEN / "pkl" / f"{name}.pkl")
        for i, layer in enumerate(layouts.stylegan3_layers(read.description.arguments)):
            for leaf, taps in (("up_filter", layer.up_filter()), ("down_filter", layer.down_filter())):
                if taps is not None:
                    assert np.abs(np.subtract(read.tensors[f"synthesis.layers.{i}.{leaf}"], taps)).max() < 1e-6


def test_third_generation_arguments_fit_their_shapes() -> None:
    checkpoint = made("stylegan3", **THIRD)
    geometry = {"size": 16, "critical": 2, "margin": 4, "output_scale": 0.25, "half_levels": 0, "conv_clamp": 256, "radial": False}
    geometry |= {"first_cutoff": 2, "first_stopband": 2**2.1, "last_stopband": 2**0.3, "taps": 6, "oversampling": 2}
    shapes = {name: array.shape for name, array in checkpoint.tensors.items()}
    arguments = layouts.stylegan3_arguments(shapes, layers=4, **geometry)
    assert arguments["widths"] == [8, 8, 8, 6]
    with pytest.raises(ConfigError, match="margin is 100"):
        layouts.stylegan3_arguments(shapes, layers=4, **geometry | {"margin": 100})


def test_a_file_and_its_conversion_make_the_same_pictures(written: tuple[str, Path, Checkpoint], tmp_path: Path) -> None:
    _, path, checkpoint = written
    read = formats.find(path).read(path)
    safetensors.write(copy := tmp_path / "copy.safetensors", read)
    jobs = [Generate(model="x", seed=i, psi=0.7, noise=noise) for i, noise in enumerate(NOISES)]
    pictures = []
    for each in (checkpoint, read, formats.find(copy).read(copy)):
        model = stylegan2.load(each, ModelConf(file=path), Place(id="x"))
        pictures.append([output.image for output in model.run(jobs, go_on)])
    original, first, second = (np.stack(images) for images in pictures)
    assert first.tobytes() == second.tobytes()
    assert np.abs(first.astype(int) - original).max() <= 1  # TensorFlow's style biases are rounded
    assert first.std() > 10
