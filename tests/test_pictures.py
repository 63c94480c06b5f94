"""Pictures that jobs start from travel as small as they are used, and the pictures that are made of them do not change by it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # the libraries warn of their own ways while they are imported
    import torch

    from tests import tiny_pipelines as tiny

from api.conf import DiffusionConf, ModelConf
from api.models.base import Place, go_on
from api.models.descent import as_target
from api.models.families import diffusion as family
from api.models.families.diffusion import Diffusion
from api.models.formats import diffusers as folder_format
from api.models.jobs import Diffuse, Generate, Pixels, Project
from api.models.pictures import has_picture, slim


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Diffusion]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    file: Path = tiny.save("sd", tmp_path_factory.mktemp("pipeline"))
    conf = ModelConf(file=file, warmup=False, diffusion=DiffusionConf(steps=2, max_size=128))
    found = family.load(folder_format.read(file), conf, Place(id="words"))
    assert isinstance(found, Diffusion)
    yield found
    torch.set_num_threads(threads)


def photograph(height: int, width: int, channels: int = 3) -> Pixels:
    return np.random.default_rng(7).integers(0, 256, (height, width, channels), np.uint8)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    ("shape", "wish", "size"),
    [
        ((300, 200), {}, (88, 128)),  # width, height: about its shape, as large as may be
        ((200, 301), {"width": 64}, (64, 88)),
        ((100, 100), {"width": 64, "height": 96}, (64, 96)),
        ((70, 66), {}, (64, 72)),
    ],
)
def test_the_model_makes_the_same_of_it(
    model: Diffusion, shape: tuple[int, int], wish: dict[str, Any], size: tuple[int, int], masked: bool
) -> None:
    mask = photograph(*shape)[:, :, 0] if masked else None
    job = Diffuse(model="words", prompt="a face", seed=3, image=photograph(*shape), mask=mask, **wish)
    small = slim(job, model.info)
    assert isinstance(small, Diffuse)
    assert small.image is not None
    assert small.image.shape == (size[1], size[0], 3) or small is job
    assert small.image.size <= photograph(*shape).size
    (whole,), (made,) = (model.run([model.prepare(one)], go_on) for one in (job, small))
    assert made.image.shape == (size[1], size[0], 3)
    assert np.array_equal(whole.image, made.image)
    assert whole.extra == made.extra


@pytest.mark.parametrize("fields", [{"image": photograph(20, 30)}, {}, {"image": photograph(90, 90), "mask": photograph(80, 90)[:, :, 0]}])
def test_what_is_small_or_wrong_stays_as_it_is(model: Diffusion, fields: dict[str, Any]) -> None:
    job = Diffuse(model="words", prompt="a face", width=64, height=64, **fields)
    assert slim(job, model.info) is job
    assert has_picture(job) == ("image" in fields)
    assert not has_picture(Generate(model="faces"))


@pytest.mark.parametrize("shape", [(64, 64), (300, 64), (65, 200), (10, 31), (3, 3), (500, 500)])
@pytest.mark.parametrize("channels", [3, 4])
def test_a_projection_looks_at_the_middle_square(model: Diffusion, shape: tuple[int, int], channels: int) -> None:
    info = model.info
    job = Project(model="faces", image=photograph(*shape, channels))
    small = slim(job, info)
    assert isinstance(small, Project)
    side = min(*shape, info.width)
    assert small.image.shape == (side, side, 3)
    assert torch.equal(as_target(small.image, info.width), as_target(job.image, info.width))
