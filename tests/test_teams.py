"""How many cores a lone picture gets, and that it is the same picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from api.conf import load_config
from api.engine.teams import EACH, choose_team
from api.models.base import Info, Model, Step, go_on
from api.models.jobs import Generate, Job, Output
from api.models.registry import load_model
from tests.serving import ROOT


class Drifting:
    """A model whose pictures, from the one with the seed ``after`` on, depend on how many cores compute them."""

    def __init__(self, parameters: int, after: int = 1 << 40) -> None:
        text: dict[str, Any] = dict.fromkeys(("id", "name", "description", "family", "device", "digest"), "drifting")
        self.info = Info(**text, width=1, height=1, lossy=False, kinds=("Generate",), parameters=parameters)
        self.after, self.cores, self.seeds = after, 1, set[int]()

    def use(self, cores: int) -> None:
        self.cores = cores

    def prepare(self, job: Job) -> Job:
        return job

    def key(self, job: Job) -> str:
        return ""

    def run(self, jobs: Sequence[Job], step: Step) -> Sequence[Output]:
        (seed,) = (job.seed or 0 for job in jobs)
        self.seeds.add(seed)
        return [Output(image=np.full((1, 1, 3), self.cores if seed >= self.after else 0, np.uint8), seed=seed)]


@pytest.mark.parametrize(("parameters", "cores", "team"), [(EACH - 1, 8, 1), (2 * EACH, 8, 2), (2 * EACH, 1, 1), (100 * EACH, 8, 8)])
def test_a_team_is_as_large_as_the_network(parameters: int, cores: int, team: int) -> None:
    model = Drifting(parameters)
    assert choose_team(model, cores, model.use) == team
    assert len(model.seeds) >= (team > 1)


@pytest.mark.parametrize("after", [0, 1])
def test_a_team_that_makes_other_pictures_is_none(after: int, caplog: pytest.LogCaptureFixture) -> None:
    model = Drifting(2 * EACH, after)
    assert choose_team(model, 2, model.use) == 1
    assert "2 cores make another picture than one does" in caplog.text
    assert choose_team(model, 2, model.use, check=False) == 2


@pytest.mark.parametrize("name", ["faces", "glyphs"])
def test_teams_make_the_default_models_pictures_to_the_last_bit(name: str) -> None:
    from api.models.device import prepare_device, use_cores

    config = load_config(ROOT / "default" / "config.toml")
    if (cores := prepare_device("cpu")) < 2:
        pytest.skip("there is one core")
    model: Model = load_model(config, name)
    try:
        assert choose_team(model, cores, use_cores) == 2
        for seed in range(20):
            made: list[Output] = []
            for count in (1, 2):
                use_cores(count)
                made += model.run([model.prepare(Generate(model=name, seed=seed))], go_on)
            one, team = made
            assert np.array_equal(one.image, team.image)
            assert one.styles is not None
            assert team.styles is not None
            assert np.array_equal(one.styles, team.styles)
    finally:
        use_cores(cores)
