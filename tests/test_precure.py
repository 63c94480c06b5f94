"""Precure StyleGAN ADA from checkpoint to pictures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import pytest
import torch

from api.conf import ModelConf
from api.errors import BadArray, BadInput, ConfigError, NoSuchLabel
from api.models import formats
from api.models.base import Array, Checkpoint, Place
from api.models.device import check_device
from api.models.families import precure
from api.models.formats import safetensors
from api.models.gan import Gan
from api.models.jobs import Generate, Job, Output, Synthesize
from api.models.latents import draw_latent, draw_noise
from api.models.nets.precure import CATMULL_ROM, DENSE_UPSAMPLING, Generator, Upsampling, double, noise_sides
from api.models.nets.precure_frozen import Doubling, Frozen, mirrored
from tests import golden
from tests.tiny import tiny_precure

Truncation = Literal["class", "global"] | None


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def load(path: Path, truncation: Truncation = None, **place: Any) -> Gan:
    conf = ModelConf(file=path, truncation=truncation)
    return cast(Gan, precure.load(formats.find(path).read(path), conf, Place(id="net", digest="d", **place)))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Gan:
    path = tmp_path_factory.mktemp("plain") / "net.safetensors"
    tiny_precure(path, levels=3)
    return load(path)


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Gan:
    path = tmp_path_factory.mktemp("classes") / "net.safetensors"
    tiny_precure(path, levels=4, categories=3, first_channels=64, last_channels=16)
    return load(path)


def make(model: Gan, *jobs: Job) -> list[Output]:
    return list(model.run([model.prepare(job) for job in jobs], lambda *_: None))


def generate(**options: Any) -> Generate:
    return Generate(model="net", **{"seed": 1, **options})


# The network against what the reference computes


def reference() -> tuple[Generator, dict[str, Any]]:
    data = golden.arrays("precure_mnist")
    checkpoint = formats.find(golden.mnist()).read(golden.mnist())
    return precure.build(checkpoint.description.arguments, checkpoint.tensors), data


def fixed_noise(seed: int) -> list[torch.Tensor]:
    """As the golden data's README tells."""
    ids = [(level, k) for level in range(1, 5) for k in ((1,) if level == 1 else (1, 2))]
    planes = [np.random.Generator(np.random.PCG64(seed + 10 * level + k)).normal(size=(1, 2 << level, 2 << level)) for level, k in ids]
    return [torch.from_numpy(plane.astype(np.float32)) for plane in planes]


@torch.inference_mode()
def test_the_plain_network_agrees_with_the_reference() -> None:
    generator, data = reference()
    z, c = torch.from_numpy(data["z"]), torch.eye(10)[torch.from_numpy(data["label"])]
    w = generator.mapping(z, c)
    assert np.abs(w.numpy() - data["w"]).max() < 1e-5
    ws = w[:, None].expand(-1, 4, -1)
    assert np.abs(generator.synthesis(ws).numpy() - data["image_noise0"]).max() < 1e-4
    noise = [plane[:, None] for plane in fixed_noise(7)]
    assert np.abs(generator.synthesis(ws, noise).numpy() - data["image_fixed7"]).max() < 1e-4


@torch.inference_mode()
def test_the_frozen_network_agrees_with_the_reference() -> None:
    generator, data = reference()
    network = Frozen(generator)
    z, c = torch.from_numpy(data["z"]), torch.eye(10)[torch.from_numpy(data["label"])]
    w = network.mapping(z, c)
    assert np.abs(w.numpy() - data["w"]).max() < 1e-5
    ws, silent = w[:, None].expand(-1, 4, -1), None
    assert np.abs(network.synthesis(ws, silent).numpy() - data["image_noise0"]).max() < 1e-4
    noise = torch.cat([plane.flatten(1) for plane in fixed_noise(7)], dim=1).expand(10, -1)
    assert np.abs(network.synthesis(ws, noise).numpy() - data["image_fixed7"]).max() < 1e-4
    blended = w[:3].mean(0).expand(1, 4, -1)
    assert np.abs(network.synthesis(blended, silent).numpy() - data["blend_first3"]).max() < 1e-4
    for count in range(1, 5):
        mixed = w[torch.from_numpy(data[f"mix{count}_levels"])][None]
        assert np.abs(network.synthesis(mixed, silent).numpy() - data[f"mix{count}_image"]).max() < 1e-4


def test_the_served_model_agrees_with_the_reference() -> None:
    data, model = golden.arrays("precure_mnist"), load(golden.mnist())
    labels = model.info.labels or ()
    jobs = [generate(sd=0.0, latent=z, label=labels[label], noise="none") for z, label in zip(data["z"], data["label"], strict=True)]
    for output, w, image in zip(make(model, *jobs), data["w"], data["image_noise0"], strict=True):
        assert output.styles is not None
        assert np.abs(output.styles - w).max() < 1e-5
        wanted = np.clip(image, 0, 1).transpose(1, 2, 0) * 255
        assert np.abs(output.image - wanted).max() < 0.5 + 255e-4
    assert model.means.classes is not None
    assert np.abs(model.means.classes - data["class_mean_w"]).max() < 0.05
    assert np.abs(model.means.all - data["class_mean_w"].mean(0)).max() < 0.05


@pytest.mark.parametrize(("levels", "categories", "first", "last"), [(1, 0, 8, 8), (2, 2, 8, 4), (5, 0, 24, 4), (3, 5, 4, 16)])
@torch.inference_mode()
def test_frozen_and_plain_agree_for_other_shapes(levels: int, categories: int, first: int, last: int) -> None:
    torch.manual_seed(levels)
    generator = Generator(12, 3, levels, first, last, categories)
    for name, parameter in generator.named_parameters():
        if name.endswith(("bias", "strength")):
            parameter.add_(torch.randn_like(parameter) * 0.2)
    network = Frozen(generator)
    z, c = torch.randn(3, 12), torch.eye(max(1, categories))[torch.arange(3) % max(1, categories)]
    w = generator.mapping(z, c if categories > 1 else None)
    assert torch.allclose(network.mapping(z, c if categories > 1 else None), w, atol=1e-5)
    ws = w[:, None] + torch.randn(3, levels, 12) * 0.1
    noise = [torch.randn(3, side, side) for side in noise_sides(levels)]
    wanted = generator.synthesis(ws, [plane[:, None] for plane in noise])
    assert torch.allclose(
        network.synthesis(ws, torch.cat([plane.flatten(1) for plane in noise], dim=1)),
        wanted,
        atol=1e-5 * float(wanted.abs().max()),
        rtol=1e-4,
    )


@pytest.mark.parametrize("side", [4, 16, 32, 48])
def test_ways_of_upsampling_agree(side: int) -> None:
    x = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(side))
    module = Upsampling(side, CATMULL_ROM)
    wanted = double(double(x, 3, module.taps), 2, module.taps)
    assert side <= DENSE_UPSAMPLING
    assert torch.allclose(module(x), wanted, atol=1e-5)
    rows = x.permute(0, 2, 3, 1).contiguous()
    found = Doubling(side, CATMULL_ROM, torch.device("cpu"), torch.float32, border=True)(rows).permute(0, 3, 1, 2)
    assert torch.allclose(found, torch.nn.functional.pad(wanted, [1] * 4, mode="replicate"), atol=1e-5)
    assert torch.equal(mirrored(rows), torch.from_numpy(np.pad(rows, [(0, 0), (2, 2), (2, 2), (0, 0)], mode="symmetric")))


def test_upsampling_keeps_flat_pictures_flat() -> None:
    assert torch.allclose(Upsampling(8, CATMULL_ROM)(torch.ones(1, 1, 8, 8)), torch.ones(1, 1, 16, 16), atol=1e-6)


def test_it_can_be_trained() -> None:
    generator = Generator(8, 2, 2, 8, 4, 2)
    generator(torch.randn(2, 8), torch.eye(2), [torch.randn(2, 1, side, side) for side in noise_sides(2)]).square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in generator.parameters())


# What a job means


def test_info(plain: Gan, classes: Gan) -> None:
    assert (plain.info.width, plain.info.height, plain.info.levels, plain.info.z_size, plain.info.w_size) == (16, 16, 3, 16, 16)
    assert plain.info.labels is None
    assert classes.info.labels == ("cat0", "cat1", "cat2")
    assert classes.info.kinds == ("Generate", "Synthesize", "Edit", "Project")
    assert classes.info.noises == ("random", "none")
    assert classes.info.digest == "d"


def test_latents_are_drawn_as_nvidias_tools_draw_them(plain: Gan) -> None:
    drawn = np.random.RandomState(5).randn(1, 16)[0]
    centre = np.linspace(-1, 1, 16, dtype=np.float32)
    simple, moved, exact = make(plain, generate(seed=5), generate(seed=5, sd=0.5, latent=centre), generate(seed=5, sd=0, latent=centre))
    assert simple.latent is not None
    assert moved.latent is not None
    assert np.array_equal(simple.latent, drawn.astype(np.float32))
    assert np.allclose(moved.latent, drawn * 0.5 + centre, atol=1e-6)
    assert exact.latent is not None
    assert np.array_equal(exact.latent, centre)
    assert simple.image.shape == (16, 16, 3)
    assert simple.image.dtype == np.uint8
    assert len(np.unique(simple.image)) > 20


def test_every_draw_starts_anew() -> None:
    """An odd number of draws leaves half a pair behind in the generator, which the next seed must not see."""
    for seed in (3, 2**32 - 1, 3):
        random = np.random.RandomState(seed)
        z, label = draw_latent(generate(seed=seed), 7, 10)
        assert np.array_equal(z, random.randn(1, 7)[0].astype(np.float32))
        assert label == random.randint(10)


def test_psi_pulls_toward_the_mean(plain: Gan) -> None:
    full, half, none = make(plain, generate(), generate(psi=0.5), generate(psi=0.0))
    assert full.styles is not None
    assert half.styles is not None
    assert none.styles is not None
    assert np.allclose(half.styles, (full.styles + plain.means.all) / 2, atol=1e-6)
    assert np.array_equal(none.styles, np.tile(plain.means.all, (3, 1)))


@pytest.mark.parametrize(
    ("choice", "asked", "own"), [(None, True, True), (None, False, False), ("class", False, True), ("global", True, False)]
)
def test_which_mean(classes: Gan, choice: Truncation, asked: bool, own: bool) -> None:
    model = Gan(classes.info, classes.mapping, classes.render, replace(classes.means, choice=choice), classes.batch, {})
    output = make(model, generate(label="cat2" if asked else None, psi=0.0))[0]
    assert output.label is not None
    assert output.styles is not None
    assert model.means.classes is not None
    wanted = model.means.classes[int(output.label[3:])] if own else model.means.all
    assert np.array_equal(output.styles[0], wanted)


def test_labels_are_drawn_from_the_seed_after_the_latent(classes: Gan) -> None:
    outputs = make(classes, *(generate(seed=seed) for seed in range(40)))
    assert {output.label for output in outputs} == {"cat0", "cat1", "cat2"}
    for seed, output in enumerate(outputs):
        random = np.random.RandomState(seed)
        random.randn(1, 16)
        assert output.label == f"cat{random.randint(3)}"
    named = make(classes, generate(seed=7, label=outputs[7].label))[0]
    assert np.array_equal(named.image, outputs[7].image)
    other = make(classes, generate(seed=7, label="cat0" if outputs[7].label != "cat0" else "cat1"))[0]
    assert not np.array_equal(other.image, outputs[7].image)


def test_noise_is_of_the_seed(plain: Gan) -> None:
    base = make(plain, generate(seed=3))[0]
    assert base.styles is not None
    same, other, none, silent = make(
        plain,
        Synthesize(model="net", seed=3, styles=base.styles),
        Synthesize(model="net", seed=4, styles=base.styles),
        Synthesize(model="net", seed=3, styles=base.styles, noise="none"),
        Synthesize(model="net", seed=4, styles=base.styles, noise="none"),
    )
    assert np.array_equal(same.image, base.image)
    assert not np.array_equal(other.image, base.image)
    assert not np.array_equal(none.image, base.image)
    assert np.array_equal(none.image, silent.image)
    assert same.latent is None
    assert same.label is None


def test_layers_get_standard_normal_noise_of_their_own() -> None:
    first, second = draw_noise([9, None], [10_000, 20_000])
    assert first.shape == (2, 10_000)
    assert not first[1].any()
    assert abs(first[0].mean()) < 0.05
    assert abs(second[0].std() - 1) < 0.02
    assert not np.array_equal(first[0], second[0, :10_000])
    assert np.array_equal(draw_noise([1, 9], [10_000, 20_000])[1][1], second[0])


def test_prepare_draws_a_seed_and_keeps_a_given_one(plain: Gan) -> None:
    seeds = {plain.prepare(generate(seed=None)).seed for _ in range(20)}
    assert len(seeds) == 20
    assert None not in seeds
    job = generate(seed=0)
    assert plain.prepare(job) is job


@pytest.mark.parametrize(
    ("job", "error", "message"),
    [
        (generate(label="cat0"), NoSuchLabel, "cat0"),
        (generate(seed=-1), BadInput, "seed -1"),
        (generate(seed=2**32), BadInput, "seed 4294967296"),
        (generate(psi=float("nan")), BadInput, "psi nan"),
        (generate(sd=-0.5), BadInput, "sd -0.5"),
        (generate(sd=float("inf")), BadInput, "sd inf"),
        (generate(noise="const"), BadInput, "'const'.*random, none"),
        (generate(latent=np.zeros(15, np.float32)), BadArray, r"\(15,\).*\(16,\)"),
        (generate(latent=np.zeros((1, 16), np.float32)), BadArray, r"\(1, 16\)"),
        (Synthesize(model="net", styles=np.zeros((2, 16), np.float32)), BadArray, r"\(2, 16\).*\(3, 16\)"),
        (Synthesize(model="net", styles=np.zeros((3, 16), np.float32), noise="const"), BadInput, "'const'"),
        (Job(model="net"), BadInput, "cannot Job"),
    ],
)
def test_what_is_refused(plain: Gan, job: Job, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        plain.prepare(job)


def test_unknown_labels(classes: Gan) -> None:
    with pytest.raises(NoSuchLabel):
        classes.prepare(generate(label="dog"))


def test_extreme_styles_still_make_a_picture(plain: Gan) -> None:
    for value in (0.0, 100.0, -100.0, 3e38):
        output = make(plain, Synthesize(model="net", seed=1, styles=np.full((3, 16), value, np.float32)))[0]
        assert output.image.shape == (16, 16, 3)


# Same recipe, same bytes


def same(one: Output, other: Output) -> bool:
    pairs = [(getattr(one, name), getattr(other, name)) for name in ("image", "styles", "latent")]
    return (one.seed, one.label) == (other.seed, other.label) and all((a is None and b is None) or np.array_equal(a, b) for a, b in pairs)


def any_job(model: Gan, random: np.random.Generator) -> Job:
    seed, noise = int(random.integers(2**32)), str(random.choice(["random", "none"]))
    if random.random() < 0.3:
        styles = random.standard_normal((model.info.levels, model.info.w_size), np.float32)
        return Synthesize(model="net", seed=seed, styles=styles, noise=noise)  # type: ignore[arg-type]
    label = None if random.random() < 0.5 or not model.info.labels else str(random.choice(model.info.labels))
    return generate(seed=seed, label=label, psi=float(random.choice([0.5, 0.7, 1])), noise=noise)


def mismatches(model: Gan, cases: int, seed: int) -> int:
    """How many of ``cases`` pictures depend on their neighbours or on the number of threads."""
    random = np.random.default_rng(seed)
    jobs = [any_job(model, random) for _ in range(40)]
    alone = [make(model, job)[0] for job in jobs]
    wrong = done = 0
    while done < cases:
        torch.set_num_threads(1 + (done >= cases * 0.8))
        taken = random.choice(len(jobs), random.integers(1, 20), replace=False)
        outputs = make(model, *(jobs[i] for i in taken))
        wrong += sum(not same(output, alone[i]) for output, i in zip(outputs, taken, strict=True))
        done += len(taken)
    return wrong


@pytest.mark.parametrize("seed", [1, 2])
def test_neighbours_and_threads_change_nothing(classes: Gan, seed: int) -> None:
    print(f"seed {seed}")
    assert mismatches(classes, 400, seed) == 0


def test_neighbours_change_nothing_on_the_mnist_network() -> None:
    assert mismatches(load(golden.mnist()), 400, seed=3) == 0


def test_pictures_and_means_are_the_same_after_loading_again(tmp_path: Path) -> None:
    tiny_precure(tmp_path / "net.hdf5", categories=2)
    one, two = load(tmp_path / "net.hdf5"), load(tmp_path / "net.hdf5")
    torch.set_num_threads(2)
    three = load(tmp_path / "net.hdf5")
    first = make(one, generate(psi=0.5))[0]
    assert same(first, make(two, generate(psi=0.5))[0])
    assert same(first, make(three, generate(psi=0.5))[0])


# Checkpoints


def test_stored_means_are_used(tmp_path: Path) -> None:
    made = tiny_precure(tmp_path / "net.safetensors", categories=2)
    means: dict[str, Array] = {"mean_w": np.full(16, 2, np.float32), "class_mean_w": np.full((2, 16), 3, np.float32)}
    safetensors.write(tmp_path / "more", replace(made, tensors={**made.tensors, **means}))
    model = load(tmp_path / "more")
    assert model.means.all.tolist() == [2] * 16
    assert model.means.classes is not None
    assert model.means.classes.tolist() == [[3] * 16] * 2
    means["class_mean_w"] = np.zeros((2, 3), np.float32)
    safetensors.write(tmp_path / "more", replace(made, tensors={**made.tensors, **means}))
    with pytest.raises(ConfigError, match="class_mean_w"):
        load(tmp_path / "more")


def spoilt(checkpoint: Checkpoint, name: str, array: Array | None = None, **arguments: Any) -> Checkpoint:
    tensors = {key: value for key, value in checkpoint.tensors.items() if key != name} | ({} if array is None else {name: array})
    return replace(
        checkpoint,
        tensors=tensors,
        description=replace(checkpoint.description, arguments={**checkpoint.description.arguments, **arguments}),
    )


CONST = "synthesis.const"


@pytest.mark.parametrize(
    ("name", "array", "arguments", "message"),
    [
        (CONST, None, {}, f"'{CONST}' is missing"),
        (CONST, np.zeros((2, 4, 4), np.float32), {}, rf"'{CONST}' is float32 \(2, 4, 4\)"),
        (CONST, np.zeros((16, 4, 4), np.int32), {}, "int32"),
        (CONST, np.full((16, 4, 4), np.nan, np.float32), {}, "not finite"),
        ("extra", np.zeros(1, np.float32), {}, "'extra' is not part"),
        ("", None, {"levels": 10**9}, "'levels' of the network is 1000000000"),
        ("", None, {"levels": True}, "'levels' of the network is True"),
        ("", None, {"size": "16"}, "'size' of the network is '16'"),
        ("", None, {"size": 8192, "depth": 64}, "mapping.layers.0.weight' is float32"),
        ("", None, {"categories": 3}, "mapping.embedding.weight' is missing"),
    ],
)
def test_checkpoints_that_do_not_fit(tmp_path: Path, name: str, array: Array | None, arguments: dict[str, Any], message: str) -> None:
    made = tiny_precure(tmp_path / "net.safetensors")
    with pytest.raises(ConfigError, match=message):
        precure.load(spoilt(made, name, array, **arguments), ModelConf(file=tmp_path), Place(id="net"))


def test_labels_must_match_the_classes(tmp_path: Path) -> None:
    made = tiny_precure(tmp_path / "net.safetensors", categories=3)
    broken = replace(made, description=replace(made.description, labels=("a",)))
    with pytest.raises(ConfigError, match="1 labels for 3 classes"):
        precure.load(broken, ModelConf(file=tmp_path), Place(id="net"))


def test_half_precision_stays_close(tmp_path: Path) -> None:
    tiny_precure(tmp_path / "net.safetensors", levels=4, first_channels=64)
    jobs: Sequence[Job] = [generate(seed=seed) for seed in range(4)]
    full = make(load(tmp_path / "net.safetensors"), *jobs)
    half = make(load(tmp_path / "net.safetensors", precision="bfloat16"), *jobs)
    differences = [np.abs(a.image.astype(int) - b.image).mean() for a, b in zip(full, half, strict=True)]
    assert 0 < max(differences) < 3


def test_devices() -> None:
    assert check_device("cpu") == "cpu"
    with pytest.raises(ConfigError, match="'tpu' is unknown"):
        check_device("tpu")
    with pytest.raises(ConfigError, match="GPU 77 is asked for"):
        check_device("cuda:77")
