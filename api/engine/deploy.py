"""Bringing the models of a configuration into a Ray cluster, looking after them, and taking them out again."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from api.conf import Config, engine_digest
from api.engine.ingress import Worker
from api.engine.ray import app_name, connect
from api.engine.replica import Replica
from api.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
DEPLOYMENT = "model"
INGRESS = "/"  # what the web workers are called where models have their ids, which it cannot be
GRACE = 10.0  # seconds beyond the longest deadline that a replica is given to answer what it has
ROOM = 256  # calls beside those that wait: what is at work, and questions
TRIES = 3  # starts of a new replica before its deployment counts as failed
LOOK = 3.0  # seconds in which replicas tell how they are
OPEN = 10_000  # requests, streams of events among them, that a web worker in the cluster may have open


@dataclass(frozen=True, slots=True)
class State:
    """A model in the cluster. ``health`` is Ray's word, ``message`` its explanation; ``queue`` counts pictures at work or waiting."""

    model_id: str
    health: str
    replicas: dict[str, int]  # Ray's state of a replica → how many are in it
    queue: int
    message: str


def deploy(config: Config, toml: Path) -> None:
    """Starts what is new, updates what has changed, ends what is gone; returns when all models serve. Raises ``ConfigError``.

    Replicas are replaced one by one, each when its successor is ready and it has answered what it has. ``toml`` is what web workers
    in the cluster read.
    """
    connect(config)
    start(config)
    targets = [serve.RunTarget(bind(config, model_id), app_name(config, model_id), None) for model_id in config.models]
    if config.cluster.ingress.enabled:
        targets.append(serve.RunTarget(bind_ingress(config, toml), config.cluster.name, "/"))
    try:
        serve.run_many(targets)
    except RuntimeError as error:
        faults = [state.message for state in states(config) if state.health == "DEPLOY_FAILED"]
        raise ConfigError("\n".join(faults) or str(error)) from None
    end(config, keep={target.name for target in targets})


def start(config: Config) -> None:
    """Has Serve run, with proxies if they are the way in. Raises ``ConfigError`` if it runs without those."""
    ingress = config.cluster.ingress
    if not ingress.enabled:
        serve.start(proxy_location="Disabled")
        return
    serve.start(proxy_location="EveryNode", http_options={"host": ingress.host, "port": ingress.port})
    if not serve.status().proxies:
        raise ConfigError("cluster.ingress: Ray Serve runs in this cluster without proxies; end all that it serves, then deploy again")


def bind(config: Config, model_id: str) -> serve.Application:
    """A model's application; its version changes with all that changes what a replica does."""
    own = narrow(config, model_id)
    place, engine = config.models[model_id].cluster, config.server.engine
    options: dict[str, Any] = {"num_replicas": place.replicas}
    scale = place.autoscale
    if scale.max is not None:
        options = {
            "autoscaling_config": {
                "min_replicas": scale.min,
                "max_replicas": scale.max,
                "target_ongoing_requests": scale.target,
                "upscale_delay_s": scale.up,
                "downscale_delay_s": scale.down,
                # What is averaged is not to reach further back than what is waited for.
                "metrics_interval_s": min(5.0, max(0.5, scale.up / 4)),
                "look_back_period_s": min(30.0, max(2.0, scale.up)),
            }
        }
    make: Any = serve.deployment  # whose overloads leave out a plain class
    deployment = make(Replica).options(
        name=DEPLOYMENT,
        # What waits, waits in the replica's lane, which knows batches, fairness and deadlines, and refuses what is too much;
        # only while there is no replica does it wait with Ray.
        max_ongoing_requests=2 * engine.max_queue + ROOM,
        max_queued_requests=engine.max_queue,
        graceful_shutdown_timeout_s=max(engine.deadline, config.tasks.deadline) + GRACE,
        graceful_shutdown_wait_loop_s=0.2,
        health_check_period_s=2.0,
        max_surge_percent=100,
        max_constructor_retry_count=TRIES,
        ray_actor_options={
            "num_cpus": place.num_cpus,
            "num_gpus": num_gpus(config, model_id),
            "runtime_env": {"env_vars": {"PYTHONPATH": str(ROOT), "GOMP_SPINCOUNT": "10000"}},
        },
        version=version(own),
        _internal=True,  # Ray would start every replica anew at every deployment
        **options,
    )
    app: serve.Application = deployment.bind(own.model_dump_json())
    return app


def bind_ingress(config: Config, toml: Path) -> serve.Application:
    """The web workers' application."""
    ingress, toml = config.cluster.ingress, toml.resolve()
    make: Any = serve.deployment
    deployment = make(serve.ingress()(Worker)).options(
        name="web",
        num_replicas=ingress.workers,
        max_ongoing_requests=OPEN,
        graceful_shutdown_timeout_s=config.server.engine.deadline + GRACE,
        graceful_shutdown_wait_loop_s=0.2,
        health_check_period_s=2.0,
        max_surge_percent=100,
        max_constructor_retry_count=TRIES,
        ray_actor_options={
            "num_cpus": ingress.num_cpus,
            "runtime_env": {"env_vars": {"PYTHONPATH": str(ROOT), "STYLEGAN_TOML": str(toml)}},
        },
        version=version(config) + hashlib.sha256(toml.read_bytes()).hexdigest()[:16],
        _internal=True,
    )
    app: serve.Application = deployment.bind(str(toml))
    return app


def narrow(config: Config, model_id: str) -> Config:
    """What a replica needs of the configuration, and none of its secrets."""
    place = config.models[model_id].cluster
    model = config.models[model_id].model_copy(update={"gpu": num_gpus(config, model_id) > 0})  # Ray shows it its own GPUs alone
    engine = config.server.engine.model_copy(update={"threads": config.server.engine.threads or max(1, round(place.num_cpus))})
    server = config.server.model_copy(update={"engine": engine})
    return Config(lossy=config.lossy, server=server, trace=config.trace, models={model_id: model})


def num_gpus(config: Config, model_id: str) -> float:
    wanted = config.models[model_id].cluster.num_gpus
    return float(config.device(model_id) != "cpu") if wanted is None else wanted


def version(config: Config) -> str:
    """Of a replica: its configuration, its checkpoint and this code."""
    total = hashlib.sha256(engine_digest(config).encode())
    for folder, _, names in sorted(os.walk(ROOT / "api")):
        for name in sorted(name for name in names if name.endswith(".py") and "node_modules" not in folder):
            total.update(Path(folder, name).read_bytes())
    return total.hexdigest()[:16]


def states(config: Config) -> Iterator[State]:
    """All models of this configuration's name in the cluster, and the web workers there. Raises ``ConfigError``."""
    connect(config)
    for name, app in sorted(serve.status().applications.items()):
        if belongs(config, name):
            found = next(iter(app.deployments.values()), None)  # each application has one
            message = " ".join(filter(None, (app.message, found.message if found else "")))
            replicas = {str(key): count for key, count in (found.replica_states if found else {}).items()}
            model_id = name.partition(".")[2] or INGRESS
            yield State(model_id, app.status.value, replicas, 0 if model_id == INGRESS else queue(name), plain(message))


def belongs(config: Config, name: str) -> bool:
    """Whether an application of the cluster is of this configuration's name."""
    return name.partition(".")[0] == config.cluster.name


def plain(message: str) -> str:
    """What was wrong with a replica, out of the tracebacks in which Ray wraps it."""
    told = [line.partition("ConfigError: ")[2] for line in message.splitlines() if line.startswith("api.errors.ConfigError: ")]
    return told[-1] if told else message


def queue(name: str) -> int:
    """How many pictures the replicas of an application have; those that do not answer are not counted."""
    try:
        told = serve.get_app_handle(name).broadcast("count").results(timeout_s=LOOK, return_exceptions=True)
    except (RayError, RayServeException, TimeoutError):
        return 0
    return sum(count for count in told if isinstance(count, int))


def down(config: Config) -> None:
    """Ends this configuration's models in the cluster, when they have answered what they have. Raises ``ConfigError``."""
    connect(config)
    end(config, keep=set())
    if not serve.status().applications:
        serve.shutdown()  # type: ignore[no-untyped-call]  # which next time can be started with proxies, or without


def end(config: Config, keep: set[str]) -> None:
    for name in serve.status().applications:
        if belongs(config, name) and name not in keep:
            serve.delete(name)
