"""Cores that share a batch: the same pictures in the same order, whatever the number of cores; failures and stops stay what they were."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from api.conf import Config, load_config
from api.models.base import Model
from api.models.cores import LARGE, Cores
from api.models.jobs import Generate, Job, Output
from api.models.registry import load_model
from tests.serving import write_config
from tests.tiny import tiny_precure


def stay(index: int, total: int, previews: object = None) -> None:
    """The step of a model that has no steps."""


class Noting:
    """A real model that notes the parts and the thread counts it was run with."""

    def __init__(self, model: Model, failing: int | None = None) -> None:
        self.model, self.info, self.failing = model, model.info, failing
        self.prepare, self.key = model.prepare, model.key
        self.parts: list[tuple[list[int | None], int]] = []

    def run(self, jobs: Sequence[Job], step: object) -> Sequence[Output]:
        self.parts.append(([job.seed for job in jobs], torch.get_num_threads()))
        if self.failing in [job.seed for job in jobs]:
            raise RuntimeError("a bad job")
        return self.model.run(jobs, stay)


def configured(folder: Path) -> Config:
    tiny_precure(folder / "plain.safetensors")
    return load_config(write_config(folder, {"plain": {"file": "plain.safetensors", "relative": True}}))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load_model(configured(tmp_path_factory.mktemp("cores")), "plain")


def jobs(count: int) -> list[Generate]:
    return [Generate(model="plain", seed=seed) for seed in range(count)]


@pytest.fixture(autouse=True)
def keep_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 16])
@pytest.mark.parametrize("cores", [1, 2, 3])
def test_the_same_pictures_in_the_same_order(model: Model, count: int, cores: int) -> None:
    expected = [model.run([job], stay)[0] for job in jobs(count)]
    found = Cores(cores).share(model).run(jobs(count), stay)
    assert [output.seed for output in found] == [output.seed for output in expected]
    assert all(np.array_equal(a.image, b.image) for a, b in zip(found, expected, strict=True))


def test_parts_run_on_one_thread_each_and_a_large_lone_picture_on_all(model: Model) -> None:
    torch.set_num_threads(2)
    noting, cores = Noting(model), Cores(2)
    cores.run(noting, jobs(5), stay)
    assert sorted(noting.parts) == [([0, 1], 1), ([2, 3, 4], 1)]
    noting.info = replace(model.info, parameters=LARGE)
    noting.parts.clear()
    cores.run(noting, jobs(1), stay)
    assert noting.parts == [([0], 2)]
    noting.info = replace(model.info, long=True)
    noting.parts.clear()
    cores.run(noting, jobs(8), stay)
    assert noting.parts == [(list(range(8)), 2)]
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("failing", [0, 5])
def test_a_failure_in_any_part_is_the_batchs_and_none_runs_on(model: Model, failing: int) -> None:
    noting = Noting(model, failing)
    with pytest.raises(RuntimeError, match="a bad job"):
        Cores(2).run(noting, jobs(6), stay)
    assert len(noting.parts) == 2


def test_registry_shares(tmp_path: Path) -> None:
    shared = load_model(configured(tmp_path), "plain", Cores(2))
    assert type(shared).__name__ == "Shared"
    assert shared.key(jobs(1)[0]) == "plain"
