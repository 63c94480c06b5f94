"""The configuration: one TOML file as a tree of frozen pydantic models.

A description stands beside every key; `docs/configuration.md` and the JSON Schema are made from them.
"""

from __future__ import annotations

import ast
import copy
import difflib
import hashlib
import inspect
import ipaddress
import itertools
import json
import os
import re
import string
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args, get_origin

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo

from api import __version__
from api.errors import ConfigError

Precision = Literal["float32", "float16", "bfloat16"]


def check_gpu(value: object) -> object:
    if isinstance(value, bool) or (isinstance(value, int) and value >= -1):
        return value
    raise ValueError("use true, false or the index of a device (-1 is the CPU)")


def check_network(value: str) -> str:
    try:
        if value != "unix":
            ipaddress.ip_network(value, strict=False)
    except ValueError:
        raise ValueError("must be an IP address, a network such as 10.0.0.0/8, or unix") from None
    return value


def check_hash(value: str) -> str:
    if not re.fullmatch(r"sha256:[0-9a-f]{64}", value):
        raise ValueError("use 'sha256:' and 64 hexadecimal digits, the hash of the key and not the key itself")
    return value


def check_path(value: object) -> object:
    if isinstance(value, str) and (not value or "\0" in value):
        raise ValueError("must be a path")
    return value


def check_redis(value: str) -> str:
    scheme, _, rest = value.partition("://")
    if scheme not in ("redis", "rediss", "valkey", "valkeys", "unix") or not rest:
        raise ValueError("use redis://[:password@]host[:port][/number], rediss:// for TLS, or unix:///path")
    return value


def check_address(value: str) -> str:
    if "://" in value or ":" not in value:
        raise ValueError("use host:port of the cluster's head; web workers run on a host of the cluster, not through ray://")
    return value


def check_place(value: str) -> str:
    scheme, mark, rest = value.partition("://")
    if not (rest if mark and scheme else value.startswith("/")):
        raise ValueError("use an absolute path, or a URL such as s3://bucket/folder")
    return value


Gpu = Annotated[bool | Annotated[int, Field(ge=-1)], BeforeValidator(check_gpu)]
Network = Annotated[str, AfterValidator(check_network)]
Location = Annotated[Path, Field(strict=False), BeforeValidator(check_path)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Hash = Annotated[str, AfterValidator(check_hash)]
Place = Annotated[str, AfterValidator(check_place)]
RedisUrl = Annotated[str, AfterValidator(check_redis)]
Delay = Annotated[float, Field(ge=0, allow_inf_nan=False)]

RESERVED = frozenset(
    "version models docs redoc openapi.json healthz readyz metrics ui text2img img2img inpainting txt2img inpaint "
    "task events blob token user images sessions collections tags v1 favicon.ico robots.txt".split()
)
"""First segments of routes: a model may not be called so."""


UNRESERVED = frozenset(string.ascii_letters + string.digits + "-_.~")


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class CorsConf(Section):
    enabled: bool = False
    """Let pages of other origins call this server."""
    origins: list[str] = []
    """The origins that may, such as "https://example.org"; "*" is every one."""


class HttpConf(Section):
    forwarded: bool = False
    """Take the client's address from a forwarding header (only from `trusted_proxies`)."""
    forwarded_headers: list[str] = ["X-Forwarded-For", "Forwarded"]
    """Headers to look at, the first that is present counts."""
    trusted_proxies: list[Network] = ["127.0.0.1", "::1", "unix"]
    """Addresses or networks whose forwarding headers count; "unix" stands for a Unix-socket peer."""
    max_body: Annotated[int, Field(ge=1024)] = 33_554_432
    """Largest request body in bytes."""
    cors: CorsConf = CorsConf()


class BlockConf(Section):
    enabled: bool = False
    """Serve each client one computing request at a time."""
    timeout: Delay = 10.0
    """Seconds that a client's next request waits for its turn before 429."""
    poll: Seconds = 0.25
    """Seconds between looks at what other processes did."""


class ConcurrencyConf(Section):
    enabled: bool = False
    """Bound the computing requests of all clients together."""
    max_concurrency: Annotated[int, Field(ge=1)] = 8
    """Requests at work at once."""
    max_queue: Annotated[int, Field(ge=0)] = 24
    """Requests that may wait, first come first served; the next one gets 503."""
    timeout: Delay = 20.0
    """Seconds that a request waits before 503."""
    poll: Seconds = 0.1
    """Seconds between looks at what other processes did."""


class RateConf(Section):
    enabled: bool = False
    """Bound each client's computing requests per time."""
    window: Seconds = 3600.0
    """Seconds that a request counts (a sliding window)."""
    max_request: Annotated[int, Field(ge=1)] = 200
    """Requests in a window; the next one gets 429."""


class LimitConf(Section):
    min_delay: Delay = 0.0
    """Seconds that a computing request takes at least."""
    block: BlockConf = BlockConf()
    concurrency: ConcurrencyConf = ConcurrencyConf()
    rate: RateConf = RateConf()


class EngineConf(Section):
    max_batch: Annotated[int, Field(ge=1, le=256)] = 16
    """Pictures computed together at most; a model may say otherwise."""
    max_queue: Annotated[int, Field(ge=1)] = 1024
    """Pictures waiting for one device at most; the next one gets 503."""
    threads: Annotated[int, Field(ge=0)] = 0
    """CPU threads of the networks; 0 is one per core."""
    encoders: Annotated[int, Field(ge=1, le=64)] = 2
    """Threads that turn pictures into PNG and the like."""
    precision: Precision = "float32"
    """Arithmetic on GPUs; the CPU always computes in float32."""
    memory: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """GiB of weights in a device's memory at most: models that are not used make room for those that are; 0: no limit."""
    wait: bool = True
    """Requests wait while their model is loaded again; false: they get 503 and when to come back."""
    deadline: Seconds = 60.0
    """Seconds after which an unserved request is given up with 503."""
    linger: Delay = 5.0
    """Seconds that an engine stays after its last web worker has gone."""


class ServerConf(Section):
    gpu: Gpu = False
    """false or -1: the CPU; true: the first GPU; a number: that GPU."""
    logger: str | None = None
    """Parent of the server's loggers, such as "uvicorn" or "gunicorn.error"."""
    log: Literal["text", "json"] = "text"
    """The form of the log's lines: for people, or JSON objects for programs."""
    tmp_dir: Location = Path("./run")
    """What may be lost: sockets, locks, limits, metrics."""
    data_dir: Location = Path("./data")
    """What may not be lost: the database and the pictures kept in it."""
    http: HttpConf = HttpConf()
    limit: LimitConf = LimitConf()
    engine: EngineConf = EngineConf()


class DiffusionConf(Section):
    scheduler: Annotated[str, Field(min_length=1)] | None = None
    """The scheduler where a request names none, such as "dpm++ 2m karras"; the pipeline's own if unset."""
    steps: Annotated[int, Field(ge=1, le=1000)] = 30
    """Denoising steps where a request tells none."""
    guidance: Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)] = 7.0
    """How closely the prompt is followed where a request does not tell; 1 and less is not at all (what Turbo and LCM models want)."""
    max_size: Annotated[int, Field(ge=8, le=8192)] | None = None
    """Longest side of a picture in pixels; twice the model's own size if unset."""
    max_steps: Annotated[int, Field(ge=1, le=1000)] = 150
    """Most steps of a request."""
    max_pictures: Annotated[int, Field(ge=1, le=64)] = 8
    """Most pictures of a request."""
    safety_checker: bool = True
    """Look at every picture with the safety checker that the pipeline brings, if it does; false: only where a request asks for it."""
    loras: dict[str, Annotated[float, Field(ge=-8, le=8, allow_inf_nan=False)]] = {}
    """LoRA files (safetensors) with their weights, such as {"style.safetensors" = 0.8}; paths are like `file`."""
    attention_slicing: bool = False
    """Compute attention in slices: slower, in less memory."""
    vae_tiling: bool = False
    """Decode large pictures tile by tile: slower, in less memory."""
    offload: Literal["none", "model", "sequential"] = "none"
    """Keep what is not at work in the host's memory (GPUs only)."""
    compile: bool = False
    """Compile the denoising network: a slow start, faster steps."""
    revision: Annotated[str, Field(min_length=1)] | None = None
    """Branch, tag or commit of a `hub:` model; the main branch if unset."""
    config: Location | None = None
    """A folder in diffusers' layout that describes a single-file checkpoint; fetched from the hub if unset."""
    allow_pickle: bool = False
    """Also take weights that are pickles (.bin), read by torch's restricted reader."""


class DirectionConf(Section):
    file: Location
    """Arrays (.npy, .npz, a torch file or safetensors), relative to what the model's `file` is relative to; never unpickled."""
    entry: Annotated[str, Field(min_length=1)] | None = None
    """Which array of the file; unset: the one of the direction's name, or the only one."""
    strength: Annotated[float, Field(ge=-1000, le=1000, allow_inf_nan=False)] = 1.0
    """What the array is multiplied by, so that an amount of 1 is a plain change."""
    description: str = ""
    """A sentence for people."""


class AutoscaleConf(Section):
    min: Annotated[int, Field(ge=1)] = 1
    """Replicas at least."""
    max: Annotated[int, Field(ge=1)] | None = None
    """Replicas at most; unset: always as many as `replicas` says."""
    target: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 8.0
    """Pictures that each replica should have at work or waiting; beyond it there are more replicas."""
    up: Delay = 10.0
    """Seconds that there have to be too many pictures before a replica is added."""
    down: Delay = 300.0
    """Seconds that there have to be too few before one is ended."""

    @model_validator(mode="after")
    def check_order(self) -> Self:
        if self.max is not None and self.min > self.max:
            raise ValueError("min must not be more than max")
        return self


class ReplicasConf(Section):
    replicas: Annotated[int, Field(ge=1)] = 1
    """Processes that serve the model, each with its weights."""
    autoscale: AutoscaleConf = AutoscaleConf()
    """As many replicas as the load asks for, such as {min = 1, max = 4, target = 8.0}."""
    num_cpus: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    """CPUs that Ray sets aside for a replica; also its threads where `server.engine.threads` is 0."""
    num_gpus: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    """GPUs for a replica, or a part of one such as 0.5; unset: 1 if the model is to live on a GPU, else 0."""


class ModelConf(Section):
    file: Location
    """The checkpoint: a file, a folder in diffusers' layout, or "hub:owner/name" on the Hugging Face hub."""
    relative: bool = False
    """`file` is relative to the TOML file instead of the working directory."""
    name: Annotated[str, Field(min_length=1)] | None = None
    """What people read; the id if unset."""
    description: str = ""
    """A sentence for people."""
    lossy: bool | None = None
    """JPEG instead of PNG; as at the root if unset."""
    gpu: Gpu | None = None
    """As in `server` if unset."""
    family: str | None = None
    """The network's family; told by the checkpoint if unset."""
    truncation: Literal["class", "global"] | None = None
    """The mean that `psi` pulls toward; unset: the class's where a class was asked for, else the global one."""
    warmup: bool = True
    """Compute a few pictures before the model counts as ready."""
    max_batch: Annotated[int, Field(ge=1, le=256)] | None = None
    """As in `server.engine` if unset."""
    precision: Precision | None = None
    """As in `server.engine` if unset."""
    diffusion: DiffusionConf = DiffusionConf()
    """What concerns diffusion models alone."""
    cluster: ReplicasConf = ReplicasConf()
    """What Ray needs to know where `cluster.engine` is "ray"."""
    directions: dict[str, DirectionConf] = {}
    """What `edit` can move a GAN's pictures along, beside the directions that are found in every checkpoint."""


class StoreConf(Section):
    url: Annotated[str, Field(min_length=1)] | None = None
    """The database, such as "postgresql://user:password@host/name"; unset: an SQLite file in `data_dir`, made when it is first needed."""
    history: bool = False
    """Keep every picture that is made, with its recipe, for `/images`."""
    undo: Delay = 86_400.0
    """Seconds that a deleted picture of the history can be restored."""


class TasksConf(Section):
    parallel: Annotated[int, Field(ge=0, le=256)] = 8
    """Tasks that one web worker has computed at once; 0: this server only accepts them."""
    max_pending: Annotated[int, Field(ge=1)] = 10_000
    """Tasks that may wait; the next one gets 503."""
    deadline: Seconds = 3600.0
    """Seconds that a task may take once it has begun."""
    lease: Seconds = 15.0
    """Seconds after which a silent worker's tasks are given to others."""
    keep: Delay = 604_800.0
    """Seconds that an ended task can be looked up; 0 is for ever."""


class BlobsConf(Section):
    url: Place | None = None
    """Where pictures are kept: an absolute path (hosts may share it) or a URL such as "s3://bucket/folder"; in `data_dir` if unset."""
    options: dict[str, Any] = {}
    """What fsspec is told beside the URL, such as {"endpoint_url" = "http://minio:9000"}; S3's keys are best left in the environment."""
    max_size: Annotated[int, Field(ge=1024)] = 16_777_216
    """Bytes of an uploaded picture."""
    max_pixels: Annotated[int, Field(ge=1)] = 16_777_216
    """Pixels of any picture that a client sends."""
    expire: Delay = 86_400.0
    """Seconds that uploaded and made pictures are kept after their last use for a task, which must not wait longer; 0 is for ever."""


class AuthConf(Section):
    enabled: bool = False
    """Ask for a token or an API key. The secret that signs tokens is in the environment variable `SECRET_KEY`."""
    enable_signup: bool = False
    """Let anybody make an account; `ENABLE_SIGNUP=1` in the environment does too."""
    enable_public_token: bool = False
    """Give anybody a token without an account; `ENABLE_PUBLIC_TOKEN=1` in the environment does too."""
    lifetime: Seconds = 86_400.0
    """Seconds that a token is good for."""
    api_keys: dict[str, Hash] = {}
    """Static keys: a name, and 'sha256:' with the key's SHA-256 in hexadecimal digits."""


class PromptsConf(Section):
    max_length: Annotated[int, Field(ge=1, le=100_000)] = 300
    """Characters of a prompt and of a negative prompt."""


class TraceConf(Section):
    url: Annotated[str, Field(pattern=r"^https?://.")] | None = None
    """Where traces are sent by OTLP over HTTP, such as "http://collector:4318/v1/traces"; unset: there are none."""
    sample: Annotated[float, Field(ge=0, le=1)] = 1.0
    """The part of the traces that is kept, where the client's own trace does not decide."""


class IngressConf(Section):
    enabled: bool = False
    """Have `python -m api deploy` run the web workers in the Ray cluster too, behind Ray Serve's proxies, one on each host."""
    host: Annotated[str, Field(min_length=1)] = "0.0.0.0"
    """The address that the proxies listen on."""
    port: Annotated[int, Field(ge=1, le=65535)] = 8000
    """Their port."""
    workers: Annotated[int, Field(ge=1)] = 2
    """Web workers in the cluster, wherever Ray has room for them."""
    num_cpus: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    """CPUs that Ray sets aside for a web worker."""


class ClusterConf(Section):
    engine: Literal["local", "ray"] = "local"
    """Where models live: in this host's engine processes, or in a Ray cluster to which `python -m api deploy` brings them."""
    address: Annotated[str, AfterValidator(check_address)] | None = None
    """The Ray cluster's head, such as "10.0.0.1:6379"; unset: `RAY_ADDRESS`, or the cluster that this host belongs to."""
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")] = "stylegan"
    """What the deployments in the Ray cluster begin with: several servers may share one."""
    ingress: IngressConf = IngressConf()
    """Ray Serve as the way in, where models live in a Ray cluster."""
    redis: RedisUrl | None = None
    """Redis or Valkey, such as "redis://:password@host:6379/0", where several hosts share limits and wake each other's event streams."""


class Config(Section):
    title: str = "StyleGAN FastAPI"
    """The title in the API's documentation."""
    version: str = "1.0.0"
    """What `/version` answers."""
    description: str = ""
    """The text in the API's documentation."""
    docs: bool = True
    """Serve Swagger UI at `/docs`."""
    redoc: bool = True
    """Serve ReDoc at `/redoc`."""
    lossy: bool = False
    """Answer JPEG instead of PNG where a request does not choose."""
    server: ServerConf = ServerConf()
    store: StoreConf = StoreConf()
    tasks: TasksConf = TasksConf()
    blobs: BlobsConf = BlobsConf()
    auth: AuthConf = AuthConf()
    prompts: PromptsConf = PromptsConf()
    cluster: ClusterConf = ClusterConf()
    trace: TraceConf = TraceConf()
    models: Annotated[dict[str, ModelConf], Field(min_length=1)]

    def device(self, model_id: str) -> str:
        """The device a model lives on, in torch's words."""
        gpu = self.models[model_id].gpu
        gpu = self.server.gpu if gpu is None else gpu
        index = int(gpu) - 1 if isinstance(gpu, bool) else gpu
        return "cpu" if index < 0 else f"cuda:{index}"

    def devices(self) -> dict[str, list[str]]:
        """Which models live on which device."""
        found: dict[str, list[str]] = {}
        for model_id in self.models:
            found.setdefault(self.device(model_id), []).append(model_id)
        return found

    def lossy_of(self, model_id: str) -> bool:
        lossy = self.models[model_id].lossy
        return self.lossy if lossy is None else lossy


def load_config(path: str | Path) -> Config:
    """Reads and checks the TOML at ``path``; every path in the result is absolute. Raises ``ConfigError``."""
    path = Path(path)
    try:
        data = tomllib.loads(path.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not valid TOML: byte {error.start} is not UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from None
    return resolve(parse_config(data, str(path)), absolute(path).parent)


def parse_config(data: Mapping[str, Any], source: str = "configuration") -> Config:
    """The tree from plain data. Raises ``ConfigError`` with a line for each mistake."""
    try:
        config = Config.model_validate(data)
    except ValidationError as error:
        raise ConfigError("\n".join(f"{source}: {tell_fault(fault)}" for fault in error.errors())) from None
    faults = {model_id: fault for model_id in config.models if (fault := forbid_id(model_id))}
    if faults:
        raise ConfigError("\n".join(f"{source}: {dotted(['models', model_id])}: {fault}" for model_id, fault in faults.items()))
    return config


def resolve(config: Config, folder: Path) -> Config:
    """The same configuration with absolute paths; ``folder`` is the TOML file's."""
    models = {key: resolve_model(model, folder if model.relative else Path.cwd()) for key, model in config.models.items()}
    paths = {"tmp_dir": absolute(config.server.tmp_dir), "data_dir": absolute(config.server.data_dir)}
    return config.model_copy(update={"models": models, "server": config.server.model_copy(update=paths)})


def resolve_model(model: ModelConf, folder: Path) -> ModelConf:
    file = model.file if is_hub(model.file) else absolute(folder / model.file)
    loras = {str(absolute(folder / name)): weight for name, weight in model.diffusion.loras.items()}
    config = model.diffusion.config and absolute(folder / model.diffusion.config)
    diffusion = model.diffusion.model_copy(update={"loras": loras, "config": config})
    directions = {name: conf.model_copy(update={"file": absolute(folder / conf.file)}) for name, conf in model.directions.items()}
    return model.model_copy(update={"file": file, "diffusion": diffusion, "directions": directions})


def is_hub(file: Path) -> bool:
    """Whether the file is a name on the Hugging Face hub: ``hub:owner/name``."""
    return str(file).startswith("hub:")


def absolute(path: Path) -> Path:
    return Path(os.path.realpath(path))  # which, unlike Path.resolve, has no quarrel with links that go in circles


def engine_digest(config: Config) -> str:
    """Names the engines of a configuration: it changes with all that changes what an engine loads or does."""
    models = {
        key: model.model_dump(mode="json", exclude={"relative", "gpu", "cluster"})
        | {
            "device": config.device(key),
            "lossy": config.lossy_of(key),
            "max_batch": model.max_batch or config.server.engine.max_batch,
            "precision": model.precision or config.server.engine.precision,
            "stamps": [list(stamps(path)) for path in [model.file, *(conf.file for conf in model.directions.values())]],
        }
        for key, model in config.models.items()
    }
    engine = config.server.engine.model_dump(mode="json", exclude={"max_batch", "precision", "deadline"})
    engine["trace"] = config.trace.model_dump(mode="json")
    return hashlib.sha256(json.dumps([__version__, engine, models], sort_keys=True).encode()).hexdigest()[:16]


def stamps(path: Path) -> Iterator[tuple[str, int, int, int]]:
    """What tells one content of a checkpoint (a file, or a folder of files) from another without reading it."""
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        try:
            stat = file.stat()
        except OSError:
            continue
        yield str(file.relative_to(path)), stat.st_size, stat.st_mtime_ns, stat.st_ino


def forbid_id(model_id: str) -> str | None:
    """Why a model may not be called so, if it may not."""
    if model_id in RESERVED:
        return f"{model_id!r} is a route of the server; choose another id"
    if not model_id or model_id.startswith(".") or not all(map(fits_url, model_id)):
        return f"{model_id!r} cannot stand in a URL; use letters, digits, '-', '_', '~' and '.' (not as the first)"
    return None


def fits_url(character: str) -> bool:
    """Whether it stands in a path as it is: RFC 3986's unreserved characters, and other scripts' as RFC 3987 adds them."""
    return character in UNRESERVED if character.isascii() else character.isprintable()


def tell_fault(fault: Mapping[str, Any]) -> str:
    """One pydantic error as: key path, what was found, what is allowed."""
    loc = [str(part) for part in fault["loc"]]
    where = dotted(loc) or "the file"
    if fault["type"] == "extra_forbidden":
        keys = sorted(keys_at(loc[:-1]))
        near = difflib.get_close_matches(loc[-1], keys, 1, 0.5)
        hint = f"did you mean {near[0]!r}?" if near else "known here: " + ", ".join(keys)
        return f"{where}: unknown key; {hint}"
    if fault["type"] == "missing":
        return f"{where}: is required and missing"
    allowed = ALLOWED.get(fault["type"], fault["msg"]).format(**fault.get("ctx", {}))
    return f"{where}: found {shorten(fault['input'])}; {allowed}"


ALLOWED = {
    "bool_type": "must be true or false",
    "int_type": "must be a whole number",
    "float_type": "must be a number",
    "string_type": "must be a text",
    "path_type": "must be a path",
    "list_type": "must be a list",
    "dict_type": "must be a table",
    "model_type": "must be a table",
    "literal_error": "must be {expected}",
    "too_short": "must have at least {min_length} entry",
    "string_too_short": "must not be empty",
    "finite_number": "must be finite",
    "string_pattern_mismatch": "must be like {pattern}",
    "greater_than": "must be greater than {gt:g}",
    "greater_than_equal": "must be at least {ge:g}",
    "less_than_equal": "must be at most {le:g}",
    "value_error": "{error}",
}
"""What is allowed, by the type of pydantic's error, in the words of TOML."""


def dotted(path: list[str]) -> str:
    """A key path as TOML writes it."""
    return ".".join(name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else shorten(name) for name in path)


def shorten(value: object) -> str:
    """A value as TOML or JSON would write it, on one line and not too long."""
    text = json.dumps(value, default=str, ensure_ascii=False)
    text = "".join(character if character.isprintable() else f"\\u{ord(character):04x}" for character in text)
    return text if len(text) <= 80 else text[:77] + "..."


def section(annotation: Any) -> type[Section] | None:
    """The section that a field holds, if it holds one."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    return next((found for arg in get_args(annotation) if (found := section(arg))), None)


def keys_at(path: list[str]) -> list[str]:
    """The keys that are known at a path, such as ``["server", "http"]``."""
    current: type[Section] = Config
    names = iter(path)
    for name in names:
        field = current.model_fields.get(name)
        inner = section(field.annotation) if field else None
        if field is None or inner is None:
            return []
        current = inner
        if get_origin(field.annotation) is dict and next(names, None) is None:
            return []
    return list(current.model_fields)


def walk(current: type[Section] = Config, prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every key with its pydantic field, description included: ``("server.http.cors.enabled", FieldInfo)`` and so on."""
    texts = docstrings(current)
    for name, field in current.model_fields.items():
        inner = section(field.annotation)
        if inner is None:
            field = copy.copy(field)
            field.description = texts[name]
            yield prefix + name, field
        else:
            many = get_origin(field.annotation) is dict
            yield from walk(inner, f"{prefix}{name}.<id>." if many else f"{prefix}{name}.")


def docstrings(current: type[Section]) -> dict[str, str]:
    """The text below each key. Only documents need it: pydantic would read the source for it at every import."""
    (definition,) = ast.parse(inspect.getsource(current)).body
    assert isinstance(definition, ast.ClassDef)
    found = {}
    for key, text in itertools.pairwise(definition.body):
        if isinstance(key, ast.AnnAssign) and isinstance(text, ast.Expr):
            found[ast.unparse(key.target)] = inspect.cleandoc(ast.literal_eval(text.value))
    return found
