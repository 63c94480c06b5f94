"""StyleGAN2: what the reference implementation computes, and pictures that depend on nothing but their job."""

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
from api.errors import BadArray, BadInput, ConfigError, NoSuchLabel
from api.models import formats
from api.models.base import Checkpoint, Description, Model, Place, go_on
from api.models.families import stylegan2
from api.models.jobs import Generate, Job, Noise, Synthesize
from api.models.nets.stylegan2 import Generator, double
from tests.checkpoints import SMALL, made

GOLDEN = Path(os.environ.get("GOLDEN_DIR", "../shared/golden"))
NAMES = ["stylegan2ada_uncond64", "stylegan2ada_cond32", "stylegan2ada_resnet32", "stylegan3code_sg2_64", "stylegan2_tf_uncond64"]
NOISES: tuple[Noise, ...] = ("random", "const", "none")

needs_golden = pytest.mark.skipif(not GOLDEN.is_dir(), reason=f"no golden data at {GOLDEN} (GOLDEN_DIR)")


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def place(**kwargs: Any) -> Place:
    return Place(id="x", **kwargs)


def conf(**kwargs: Any) -> ModelConf:
    return ModelConf(file=Path("x"), **kwargs)


def loaded(checkpoint: Checkpoint, **kwargs: Any) -> Model:
    return stylegan2.load(checkpoint, conf(**kwargs), place())


def render(model: Model, *jobs: Job) -> list[Any]:
    return list(model.run([model.prepare(job) for job in jobs], go_on))


@pytest.fixture(scope="module", params=NAMES)
def golden(request: pytest.FixtureRequest) -> tuple[Any, Generator, Checkpoint]:
    checkpoint = formats.find(path := GOLDEN / "pkl" / f"{request.param}.pkl").read(path)
    network = stylegan2.build(checkpoint.description.arguments, checkpoint.tensors)
    return np.load(GOLDEN / f"{request.param.replace('2_tf', '2ada')}.npz"), network, checkpoint


def gap(found: torch.Tensor, expected: Any) -> float:
    return float(np.abs(found.detach().numpy() - expected).max())


@needs_golden
@pytest.mark.parametrize("frozen", [False, True])
def test_numbers_of_the_reference(golden: tuple[Any, Generator, Checkpoint], frozen: bool) -> None:
    data, network, _ = golden
    ws = torch.from_numpy(data["ws"])
    with torch.set_grad_enabled(not frozen):
        network = network.freeze() if frozen else network
        w = network.mapping(torch.from_numpy(data["z"]), torch.from_numpy(data["c"]) if network.c_size else None)
        assert gap(w[:, None].expand_as(ws), data["ws"]) < 1e-5
        truncated = network.mapping.w_avg.lerp(w, 0.7)[:, None].expand_as(ws)
        assert gap(truncated, data["ws_psi07"]) < 1e-5
        constants = network.synthesis.constants()
        assert gap(network.synthesis(ws, constants), data["image_const"]) < 1e-4
        assert gap(network.synthesis(ws), data["image_none"]) < 1e-4
        assert gap(network.synthesis(truncated, constants), data["image_const_psi07"]) < 1e-4
        assert gap(network.synthesis(torch.from_numpy(data["mixed_ws"])), data["image_mixed"]) < 1e-4


def bytes_of(images: Any) -> Any:
    return (images.astype(np.float64) * 127.5 + 128).clip(0, 255).astype(np.uint8).transpose(0, 2, 3, 1)


def agree(found: Any, expected: Any) -> None:
    """Pixels equal, except where the sum's order moves one across a step."""
    assert found.shape == expected.shape
    difference = np.abs(found.astype(int) - expected)
    assert difference.max() <= 1
    assert (difference > 0).mean() < 1e-3


@needs_golden
def test_the_family_gives_the_reference_pictures(golden: tuple[Any, Generator, Checkpoint]) -> None:
    data, _, checkpoint = golden
    model = loaded(checkpoint, truncation="global")
    labels = [str(row.argmax()) if row.size else None for row in data["c"]]
    common: dict[str, Any] = {"model": "x", "seed": 0, "sd": 0.0, "noise": "const"}
    jobs = [Generate(**common, latent=z, label=label) for z, label in zip(data["z"], labels, strict=True)]
    outputs = render(model, *jobs)
    agree(np.stack([output.image for output in outputs]), bytes_of(data["image_const"]))
    for output, ws, label in zip(outputs, data["ws"], labels, strict=True):
        assert np.abs(output.styles - ws).max() < 1e-5
        assert output.label == label
    pulled = render(model, *[Generate(**common, latent=z, label=label, psi=0.7) for z, label in zip(data["z"], labels, strict=True)])
    agree(np.stack([output.image for output in pulled]), bytes_of(data["image_const_psi07"]))
    mixed = render(model, *[Synthesize(model="x", seed=0, styles=ws, noise="none") for ws in data["mixed_ws"]])
    agree(np.stack([output.image for output in mixed]), bytes_of(data["image_mixed"]))


NETWORKS: dict[str, dict[str, Any]] = {
    "small": SMALL,
    "narrow": {**SMALL, "size": 64, "widths": (24, 24, 16, 16, 8)},
    "middling": {**SMALL, "widths": (96, 64, 64, 48)},
    "wide": {**SMALL, "z_size": 128, "w_size": 128, "size": 16, "widths": (512, 512, 256)},
    "resnet": {**SMALL, "architecture": "resnet", "c_size": 3},
    "orig": {**SMALL, "architecture": "orig", "conv_clamp": 256},
}


def exact(model: Any, jobs: list[Job]) -> bytes:
    """The pictures before they are rounded to bytes: a stricter comparison."""
    drafts = [model.draft(model.prepare(job)) for job in jobs]
    with torch.inference_mode():
        model.fill([draft for draft in drafts if draft.latent is not None])
        styles = torch.from_numpy(np.stack([draft.styles for draft in drafts]))
        images = model.render.synthesis(styles, model.render.noise(drafts))
    return b"".join(image.numpy().tobytes() for image in images)


@pytest.mark.parametrize("name", list(NETWORKS))
def test_a_picture_is_the_same_in_any_batch_and_on_any_number_of_threads(name: str) -> None:
    model = loaded(made("stylegan2", **NETWORKS[name]))
    jobs: list[Job] = [Generate(model="x", seed=i, noise=NOISES[i % 3]) for i in range(11)]
    styles = np.random.RandomState(1).randn(model.info.levels, model.info.w_size).astype(np.float32)
    jobs.append(Synthesize(model="x", seed=11, styles=styles))
    expected = exact(model, jobs)
    for threads, size in itertools.product((1, 2), (1, 2, 5, 12)):
        torch.set_num_threads(threads)
        found = b"".join(exact(model, jobs[i : i + size]) for i in range(0, len(jobs), size))
        assert found == expected, f"batches of {size} on {threads} threads"


def test_outputs_tell_what_they_were_made_from_and_can_be_made_again() -> None:
    model = loaded(made("stylegan2", **SMALL, c_size=3))
    job = model.prepare(Generate(model="x", psi=0.5))
    assert job.seed is not None
    (first,) = render(model, job)
    (again,) = render(model, Synthesize(model="x", seed=first.seed, styles=first.styles))
    assert np.array_equal(first.image, again.image)
    assert first.label in ("0", "1", "2")
    assert first.image.shape == (32, 32, 3)
    assert first.image.dtype == np.uint8
    (by_latent,) = render(model, Generate(model="x", seed=first.seed, sd=0, latent=first.latent, label=first.label, psi=1.0))
    assert not np.array_equal(by_latent.image, first.image)


def test_kinds_of_noise_differ_and_only_random_depends_on_the_seed() -> None:
    model = loaded(made("stylegan2", **SMALL))
    styles = np.random.RandomState(0).randn(model.info.levels, model.info.w_size).astype(np.float32)
    images = {
        (kind, seed): render(model, Synthesize(model="x", seed=seed, styles=styles, noise=kind))[0].image
        for kind in NOISES
        for seed in (1, 2)
    }
    assert not np.array_equal(images["random", 1], images["random", 2])
    for kind in ("const", "none"):
        assert np.array_equal(images[kind, 1], images[kind, 2])
    assert len({images[kind, 1].tobytes() for kind in NOISES}) == 3


def test_truncation_pulls_to_the_class_that_was_asked_for() -> None:
    checkpoint = made("stylegan2", **SMALL, c_size=3)
    common: dict[str, Any] = {"model": "x", "seed": 3, "psi": 0.0, "noise": "none"}
    free, asked = render(loaded(checkpoint), Generate(**common), Generate(**common, label="1"))
    mean = checkpoint.tensors["mapping.w_avg"]
    assert np.abs(free.styles - mean).max() < 1e-6
    assert np.abs(asked.styles - mean).max() > 1e-3
    forced, drawn = loaded(checkpoint, truncation="global"), loaded(checkpoint, truncation="class")
    assert np.abs(render(forced, Generate(**common, label="1"))[0].styles - mean).max() < 1e-6
    assert np.abs(render(drawn, Generate(**common))[0].styles - mean).max() > 1e-3


def test_truncation_ends_at_the_cutoff() -> None:
    model = loaded(made("stylegan2", **SMALL))
    whole, half, none = render(model, *[Generate(model="x", seed=3, psi=0.5, cutoff=cutoff) for cutoff in (None, 3, 0)])
    free = render(model, Generate(model="x", seed=3))[0].styles
    assert np.array_equal(half.styles[:3], whole.styles[:3])
    assert np.array_equal(half.styles[3:], free[3:])
    assert np.array_equal(none.styles, free)
    assert not np.array_equal(whole.styles, free)
    with pytest.raises(BadInput, match="cutoff 9"):
        model.prepare(Generate(model="x", cutoff=9))


def test_a_missing_mean_is_computed() -> None:
    checkpoint = made("stylegan2", **SMALL)
    tensors = {name: array for name, array in checkpoint.tensors.items() if name != "mapping.w_avg"}
    model = loaded(Checkpoint(description=checkpoint.description, tensors=tensors))
    (output,) = render(model, Generate(model="x", seed=0, psi=0.0))
    network = stylegan2.build(checkpoint.description.arguments, checkpoint.tensors)
    with torch.no_grad():
        w = network.mapping(torch.from_numpy(np.random.RandomState(9).randn(20_000, 12).astype(np.float32)))
    assert np.abs(output.styles[0] - w.mean(dim=0).numpy()).max() < 0.05 * float(w.std()) + 0.02


@pytest.mark.parametrize(
    ("job", "error"),
    [
        (Generate(model="x", label="1"), NoSuchLabel),
        (Generate(model="x", latent=np.zeros(5, np.float32)), BadArray),
        (Generate(model="x", psi=float("nan")), BadInput),
        (Generate(model="x", rotate=10.0), BadInput),
        (Generate(model="x", translate=(0.0, float("inf"))), BadInput),
        (Generate(model="x", noise="loud"), BadInput),  # type: ignore[arg-type]
        (Generate(model="x", seed=-1), BadInput),
        (Synthesize(model="x", styles=np.zeros((3, 16), np.float32)), BadArray),
    ],
)
def test_wrong_jobs_are_refused(job: Job, error: type[Exception]) -> None:
    with pytest.raises(error):
        loaded(made("stylegan2", **SMALL)).prepare(job)


def test_a_checkpoint_with_other_arrays_is_refused() -> None:
    checkpoint = made("stylegan2", **SMALL)

    def changed(**arrays: Any) -> Checkpoint:
        return Checkpoint(description=checkpoint.description, tensors={**checkpoint.tensors, **arrays})

    other = Description(format="t", family="stylegan2", arguments={**checkpoint.description.arguments, "z_size": 13})
    bad = [
        changed(**{"synthesis.b8.conv0.weight": np.zeros((1, 2, 3, 3), np.float32)}),
        changed(**{"synthesis.b8.conv0.bias": np.full(16, np.nan, np.float32)}),
        changed(more=np.zeros(3, np.float32)),
        Checkpoint(description=other, tensors=checkpoint.tensors),
    ]
    for each in bad:
        with pytest.raises(ConfigError):
            loaded(each)


def test_gradients_reach_the_styles_and_agree_with_the_picture() -> None:
    network = stylegan2.build((checkpoint := made("stylegan2", **SMALL)).description.arguments, checkpoint.tensors)
    ws = torch.randn(1, 8, 16, generator=torch.Generator().manual_seed(0), requires_grad=True)
    image = network.synthesis(ws, network.synthesis.constants())
    image.square().mean().backward()
    assert ws.grad is not None
    assert float(ws.grad.abs().sum()) > 0
    with torch.no_grad():
        assert gap(network.freeze().synthesis(ws.detach(), network.synthesis.constants()), image.detach().numpy()) < 1e-4


def test_half_precision_computes_nearly_the_same() -> None:
    checkpoint = made("stylegan2", **SMALL, conv_clamp=256)
    ws = torch.randn(2, 8, 16, generator=torch.Generator().manual_seed(0))
    full = stylegan2.build(checkpoint.description.arguments, checkpoint.tensors).freeze()
    for kind, tolerance in ((torch.bfloat16, 0.1), (torch.float16, 0.02)):
        half = stylegan2.build(checkpoint.description.arguments, checkpoint.tensors, half=True).freeze(kind)
        with torch.no_grad():
            expected, found = full.synthesis(ws), half.synthesis(ws, half=kind)
        assert found.dtype == torch.float32
        assert float((expected - found).abs().max()) < tolerance * float(expected.abs().max())
        assert not torch.equal(expected, found)


def test_doubling_is_the_binomial_filter_between_zeros() -> None:
    x = torch.randn(1, 1, 5, 5, generator=torch.Generator().manual_seed(0))
    stuffed = torch.zeros(1, 1, 10, 10)
    stuffed[..., ::2, ::2] = x
    taps = torch.tensor([1.0, 3, 3, 1]) / 4
    expected = torch.nn.functional.conv2d(torch.nn.functional.pad(stuffed, (2, 1, 2, 1)), torch.outer(taps, taps)[None, None])
    assert torch.allclose(double(x), expected, atol=1e-6)
