"""The way from a web worker to what computes: nothing above this knows whether that is a process of this host or a cluster."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Collection, Mapping
from typing import Any, Protocol

from api.conf import Config
from api.engine.client import Engine
from api.engine.codec import Encoding
from api.engine.wire import Picture, Progress, Started
from api.models.base import Info
from api.models.jobs import Job


class Transport(Protocol):
    """``name`` is the same for transports that lead to the same place."""

    infos: dict[str, Info]  # what is known of the models
    failures: dict[str, str]  # model id → why it cannot be served
    trouble: str | None  # why nothing is reached, if it is known

    @property
    def name(self) -> str: ...
    @property
    def linked(self) -> bool: ...
    @property
    def loading(self) -> Collection[str]: ...
    def open(self) -> None: ...
    async def close(self) -> None: ...
    async def info(self, model_id: str) -> Info: ...
    async def run(
        self,
        job: Job,
        *,
        client: str,
        encoding: Encoding,
        recipe: Mapping[str, Any] | None = None,
        deadline: float | None = None,
        watch: Callable[[Progress | Started], None] | None = None,
        previews: int = 0,
    ) -> Picture: ...


def build_transports(config: Config) -> dict[str, Transport]:
    """Each model's transport; models of one device share theirs. Raises ``ConfigError`` where a package is missing."""
    if config.cluster.engine == "ray":
        # Ray reads it when it is imported: how long this process outlives the head. Its own minute is shorter than many a restart.
        os.environ.setdefault("RAY_gcs_rpc_server_reconnect_timeout_s", "3600")
        transports: dict[str, Transport] = importlib.import_module("api.engine.ray").build(config)
        return transports
    engines = {device: Engine(config, device) for device in config.devices()}
    return {model_id: engines[config.device(model_id)] for model_id in config.models}
