"""Bringing the models of a configuration into a Ray cluster, looking after them, and taking them out again."""

from __future__ import annotations

import contextlib
import hashlib
import re
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.util
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.schema import ApplicationStatusOverview

from api.conf import Config, ModelConf, engine_digest
from api.engine.ingress import Worker
from api.engine.ray import SILENCE, app_name, connect
from api.engine.replica import Replica
from api.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
DEPLOYMENT = "model"
INGRESS = "/"  # what the web workers are called where models have their ids, which it cannot be
GRACE = 10.0  # seconds beyond the longest deadline that a replica is given to answer what it has
ROOM = 256  # calls beside those that wait: what is at work, and questions
TRIES = 3  # starts of a new replica before its deployment counts as failed
LOOK = 3.0  # seconds in which replicas tell how they are
TURN = 0.5  # seconds between two looks at what is waited for
OPEN = 10_000  # requests, streams of events among them, that a web worker in the cluster may have open
make: Any = serve.deployment  # whose overloads leave out a plain class
Applications = Mapping[str, ApplicationStatusOverview]  # by their names


@dataclass(frozen=True, slots=True)
class State:
    """A model in the cluster. ``health`` is Ray's word, ``message`` its explanation; ``queue`` counts pictures at work or waiting."""

    model_id: str
    health: str
    replicas: dict[str, int]  # Ray's state of a replica → how many are in it
    queue: int
    message: str


@contextlib.contextmanager
def plainly() -> Iterator[None]:
    """Says what Ray cannot do, such as to reach a cluster that has gone, as a ``ConfigError``."""
    try:
        yield
    except (RayError, RayServeException, TimeoutError) as error:
        raise ConfigError(f"the Ray cluster: {plain(str(error)) or type(error).__name__}") from None


@plainly()
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
    names = {target.name for target in targets}
    serve.run_many(targets, wait_for_ingress_deployment_creation=False, wait_for_applications_running=False)

    def find(apps: Applications) -> set[str]:
        if faults := [explain(app) for name, app in apps.items() if name in names and app.status == "DEPLOY_FAILED"]:
            raise ConfigError("\n".join(faults))
        return names - {name for name, app in apps.items() if app.status == "RUNNING"}

    wait(config, find)
    end(config, keep=names)


def wait(config: Config, find: Callable[[Applications], Collection[str]]) -> None:
    """Waits until there are no applications that ``find`` finds. Raises ``ConfigError`` when patience is at its end."""
    end = time.monotonic() + config.cluster.patience
    while late := find(apps := serve.status().applications):
        if time.monotonic() > end:
            raise ConfigError("\n".join(complain(config, name, apps.get(name)) for name in sorted(late)))
        time.sleep(TURN)


def complain(config: Config, name: str, app: ApplicationStatusOverview | None) -> str:
    told = [] if app is None else [*(f"{count} {state.lower()}" for state, count in replicas(app).items()), explain(app)]
    what = f"{label(name)}: not done after {config.cluster.patience:g} s (cluster.patience), Ray goes on with it"
    return f"{what}: {', '.join(filter(None, told))}" if any(told) else what


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
    deployment = make(Replica).options(
        name=DEPLOYMENT,
        # What waits, waits in the replica's lane, which knows batches, fairness and deadlines, and refuses what is too much;
        # only while there is no replica does it wait with Ray.
        max_ongoing_requests=2 * engine.max_queue + ROOM,
        max_queued_requests=engine.max_queue,
        version=version(own),
        **number(config.models[model_id]),
        **care(max(engine.deadline, config.tasks.deadline), place.num_cpus, num_gpus(config, model_id), GOMP_SPINCOUNT="10000"),
    )
    app: serve.Application = deployment.bind(own.model_dump_json())
    return app


def bind_ingress(config: Config, toml: Path) -> serve.Application:
    """The web workers' application."""
    ingress, toml = config.cluster.ingress, toml.resolve()
    deployment = make(serve.ingress()(Worker)).options(
        name="web",
        max_ongoing_requests=OPEN,
        version=version(config) + hashlib.sha256(toml.read_bytes()).hexdigest()[:16],
        num_replicas=ingress.workers,
        **care(config.server.engine.deadline, ingress.num_cpus, STYLEGAN_TOML=str(toml)),
    )
    app: serve.Application = deployment.bind(str(toml))
    return app


def number(model: ModelConf) -> dict[str, Any]:
    """How many replicas there are to be."""
    scale = model.cluster.autoscale
    if scale.max is None:
        return {"num_replicas": model.cluster.replicas}
    scaling = {
        "min_replicas": scale.min,
        "max_replicas": scale.max,
        "target_ongoing_requests": scale.target,
        "upscale_delay_s": scale.up,
        "downscale_delay_s": scale.down,
        # What is averaged is not to reach further back than what is waited for.
        "metrics_interval_s": min(5.0, max(0.5, scale.up / 4)),
        "look_back_period_s": min(30.0, max(2.0, scale.up)),
    }
    return {"autoscaling_config": scaling}


def care(deadline: float, num_cpus: float, num_gpus: float = 0.0, **environment: str) -> dict[str, Any]:
    """How Ray is to place any replica, look after it and replace it, whose requests take up to ``deadline`` seconds."""
    return {
        "graceful_shutdown_timeout_s": deadline + GRACE,
        "graceful_shutdown_wait_loop_s": 0.2,
        "health_check_period_s": 2.0,
        "max_surge_percent": 100,
        "max_constructor_retry_count": TRIES,
        "ray_actor_options": {
            "num_cpus": num_cpus,
            "num_gpus": num_gpus,
            "runtime_env": {"env_vars": {"PYTHONPATH": str(ROOT), **environment}},
        },
        "_internal": True,  # Ray would start every replica anew at every deployment
    }


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
    for path in sorted((ROOT / "api").rglob("*.py")):
        if "node_modules" not in path.parts:
            total.update(path.read_bytes())
    return total.hexdigest()[:16]


@plainly()
def states(config: Config) -> list[State]:
    """All models of this configuration's name in the cluster, and the web workers there. Raises ``ConfigError``."""
    connect(config)
    return [state(name, app) for name, app in sorted(serve.status().applications.items()) if belongs(config, name)]


def state(name: str, app: ApplicationStatusOverview) -> State:
    model_id = label(name)
    return State(model_id, app.status.value, replicas(app), 0 if model_id == INGRESS else queue(name), explain(app))


def replicas(app: ApplicationStatusOverview) -> dict[str, int]:
    return {str(key): count for found in app.deployments.values() for key, count in found.replica_states.items()}


def belongs(config: Config, name: str) -> bool:
    """Whether an application of the cluster is of this configuration's name."""
    return name.partition(".")[0] == config.cluster.name


def label(name: str) -> str:
    """What users call an application."""
    return name.partition(".")[2] or INGRESS


def explain(app: ApplicationStatusOverview) -> str:
    """What Ray has to say about an application, each of which has one deployment."""
    return plain(" ".join(filter(None, (app.message, *(found.message for found in app.deployments.values())))))


def plain(message: str) -> str:
    """What was wrong, in a line, out of the tracebacks in which Ray wraps it."""
    raised = re.findall(r"^[\w.]+(?:Error|Exception): .+", message, re.MULTILINE)
    return raised[-1].removeprefix("api.errors.ConfigError: ") if raised else " ".join(message.split())


def queue(name: str) -> int:
    """How many pictures the replicas of an application have; those that do not answer are not counted."""
    try:
        told = serve.get_app_handle(name).broadcast("count").results(timeout_s=LOOK, return_exceptions=True)
    except (RayError, RayServeException, TimeoutError):
        return 0
    return sum(count for count in told if isinstance(count, int))


@plainly()
def down(config: Config) -> None:
    """Ends this configuration's models in the cluster, when they have answered what they have. Raises ``ConfigError``."""
    connect(config)
    end(config, keep=set())
    if not serve.status().applications:
        serve.shutdown()  # type: ignore[no-untyped-call]  # which next time can be started with proxies, or without


def end(config: Config, keep: Collection[str]) -> None:
    def find(apps: Applications) -> set[str]:
        return {name for name in apps if belongs(config, name) and name not in keep}

    for name in find(serve.status().applications):
        serve.delete(name, _blocking=False)
        kill_waiting(name)
    wait(config, find)


def kill_waiting(name: str) -> None:
    """Ends replicas that have found no room: Ray would wait for them as long as for those that have something to answer."""
    for actor in ray.util.list_named_actors(all_namespaces=True):
        if actor["name"].startswith(f"SERVE_REPLICA::{name}#"):
            with contextlib.suppress(ValueError):  # it has just ended
                replica = ray.get_actor(**actor)
                if not ray.wait([replica.__ray_ready__.remote()], timeout=SILENCE)[0]:
                    ray.kill(replica)
