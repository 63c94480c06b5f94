"""From a configuration to models, and what is told when one cannot be loaded."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from api.conf import Config, load_config
from api.errors import ConfigError
from api.models.base import Description
from api.models.formats import safetensors
from api.models.jobs import Generate
from api.models.registry import describe_models, digest, load_model, load_models
from tests.checkpoints import SMALL, made
from tests.serving import write_config
from tests.test_stylegan3 import small
from tests.tiny import tiny_precure


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """Three models, the second of which is a text and the third of which is absent."""
    tiny_precure(tmp_path / "one.safetensors", categories=2)
    (tmp_path / "two.hdf5").write_bytes(b"no checkpoint")
    return configured(tmp_path, {name: {"file": f"{name}", "relative": True} for name in ("one.safetensors", "two.hdf5", "three.pkl")})


def configured(folder: Path, models: dict[str, Any], **server: Any) -> Config:
    return load_config(write_config(folder, models, server))


def test_loading_one(config: Config) -> None:
    model = load_model(config, "one.safetensors")
    assert model.info.labels == ("cat0", "cat1")
    assert model.info.id == model.info.name == "one.safetensors"
    assert len(model.info.digest) == 32
    job = model.prepare(Generate(model="one.safetensors", seed=1))
    assert np.asarray(model.run([job], lambda *_: None)[0].image).shape == (16, 16, 3)


@pytest.mark.parametrize("kind", ["precure", "stylegan2", "stylegan3"])
def test_parameters_are_those_of_the_network_before_and_after_loading(tmp_path: Path, kind: str) -> None:
    """Not the means, the constant noise and the filters that a file holds besides."""
    path = tmp_path / "net.safetensors"
    if kind == "precure":
        checkpoint = tiny_precure(path, categories=2)
        means = {"mean_w": np.zeros(16, np.float32), "class_mean_w": np.zeros((2, 16), np.float32)}
        safetensors.write(path, replace(checkpoint, tensors={**checkpoint.tensors, **means}))
    else:
        safetensors.write(path, made("stylegan2", **SMALL) if kind == "stylegan2" else small(radial=True))
    config = configured(tmp_path, {"net": {"file": str(path), "warmup": False}})
    described = describe_models(config)["net"]
    assert isinstance(described, Description)
    assert described.tensors > 1
    assert described.parameters == load_model(config, "net").info.parameters > 0


def test_faults_name_model_and_file(config: Config, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_models(config, "cpu")
    first, second = str(caught.value).splitlines()
    assert first.startswith(f"models.two.hdf5: {tmp_path}/two.hdf5: no known checkpoint format")
    assert second == f"models.three.pkl: {tmp_path}/three.pkl: cannot be read: No such file or directory"


def test_only_the_models_of_a_device_are_loaded(config: Config) -> None:
    assert load_models(config, "cuda:0") == {}


def test_descriptions_tell_the_same_without_loading(config: Config) -> None:
    found = describe_models(config)
    assert isinstance(found["one.safetensors"], Description)
    assert found["one.safetensors"].arguments["categories"] == 2
    assert [name for name, value in found.items() if isinstance(value, ConfigError)] == ["two.hdf5", "three.pkl"]


def test_descriptions_need_no_torch(config: Config, tmp_path: Path) -> None:
    code = (
        "import sys; from api.conf import load_config; from api.models.registry import describe_models; "
        f"describe_models(load_config({str(tmp_path / 'config.toml')!r})); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=Path(__file__).parents[1]).returncode == 0


@pytest.mark.parametrize("family", ["stylegan9", "../precure", "os"])
def test_unknown_families(tmp_path: Path, family: str) -> None:
    tiny_precure(tmp_path / "net")
    config = configured(tmp_path, {"net": {"file": "net", "relative": True, "family": family}})
    with pytest.raises(ConfigError, match=r"models\.net: .*family .* is unknown; known: .*precure"):
        load_model(config, "net")
    assert isinstance(describe_models(config)["net"], ConfigError)


def test_the_wrong_family(tmp_path: Path) -> None:
    tiny_precure(tmp_path / "net")
    config = configured(tmp_path, {"net": {"file": "net", "relative": True, "family": "stylegan2"}})
    with pytest.raises(ConfigError, match=r"models\.net: "):
        load_model(config, "net")


def test_digests_change_with_what_changes_pictures(tmp_path: Path) -> None:
    tiny_precure(tmp_path / "net")

    def told(**options: Any) -> str:
        conf = configured(tmp_path, {"net": {"file": "net", "relative": True, **options}}).models["net"]
        return digest(conf, "cpu", "float32")

    first = told()
    assert first == told(name="other", description="text", lossy=True, warmup=False, max_batch=3)
    assert first != told(truncation="global")
    tiny_precure(tmp_path / "net", seed=1)
    assert first != told()


def test_digests_of_folders(tmp_path: Path) -> None:
    folder = tmp_path / "pipeline" / "unet"
    folder.mkdir(parents=True)
    (folder / "a").write_bytes(b"12")
    config = configured(tmp_path, {"net": {"file": "pipeline", "relative": True}})
    first = digest(config.models["net"], "cpu", "float32")
    (folder / "a").write_bytes(b"1")
    (folder / "b").write_bytes(b"2")
    assert digest(config.models["net"], "cpu", "float32") != first
