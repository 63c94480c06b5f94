"""The Ray path in short, for every run of the suite: a cluster of one node, a model in it, and what a web worker asks of it."""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
from pathlib import Path

import numpy as np
import pytest

from api.conf import load_config
from api.engine.codec import Encoding
from api.engine.transport import build_transports
from api.models.jobs import Generate, Project
from tests.checkpoints import tiny_precure
from tests.clusters import cluster, until
from tests.serving import write_config

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed; see requirements-cluster.txt"),
    pytest.mark.filterwarnings("ignore"),  # of Ray's, inside of this process
]


def test_deploy_ask_cancel_and_end(tmp_path: Path) -> None:
    tiny_precure(tmp_path / "plain.safetensors", levels=3)
    models = {"plain": {"file": "plain.safetensors", "relative": True, "warmup": False}}
    with cluster() as node:
        toml = write_config(tmp_path, models, {"engine": {"threads": 1}}, cluster={"engine": "ray", "address": node.address})
        config = load_config(toml)
        bringing = importlib.import_module("api.engine.deploy")
        try:
            bringing.deploy(config, toml)
            asyncio.run(asyncio.wait_for(walk(toml), 120))
            (state,) = bringing.states(config)
            assert (state.model_id, state.health, state.replicas, state.queue) == ("plain", "RUNNING", {"RUNNING": 1}, 0)
            bringing.down(config)
            until(lambda: not node.replicas())
        finally:
            importlib.import_module("ray").shutdown()


async def walk(toml: Path) -> None:
    transport = build_transports(load_config(toml))["plain"]
    transport.open()
    try:
        await transport.info("plain")
        encoding = Encoding("png")
        jobs = [Generate(model="plain", seed=seed) for seed in range(12)]
        together = await asyncio.gather(*(transport.run(job, client="one", encoding=encoding) for job in jobs))
        alone = [await transport.run(job, client="one", encoding=encoding) for job in jobs]
        assert [picture.data for picture in together] == [picture.data for picture in alone]
        begun = asyncio.Event()
        endless = Project(model="plain", image=np.full((16, 16, 3), 90, np.uint8), seed=1, steps=2000, starts=1)
        leaving = asyncio.ensure_future(transport.run(endless, client="one", encoding=encoding, watch=lambda _: begun.set()))
        await begun.wait()
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
    finally:
        await transport.close()
