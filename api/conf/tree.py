"""The tree: a section of the TOML is a frozen pydantic model, and the text below each key is its description."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from api.conf.values import Address, Delay, Gpu, Hash, Location, Network, Place, Precision, RedisUrl, Seconds, Weights


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
    """Pictures that become PNG and the like at once, beside a CPU's small ones. A large one may take `threads` cores, or 8."""
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
    awake: Delay = 0.1
    """Seconds after a request in which idle cores do not sleep deeply, where the process may write to /dev/cpu_dma_latency; 0: never."""


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
    example: str = ""
    """The prompt of the model's example picture, which the studio offers, too; the model's description, or its name, if empty."""
    safety_checker: bool = True
    """Look at every picture with the safety checker that the pipeline brings, if it does; false: only where a request asks for it."""
    loras: Weights = {}
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
    """Seconds that uploaded and made pictures are kept after they were last sent to a task, and until it has ended; 0 is for ever."""


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
    address: Address | None = None
    """The Ray cluster's head, such as "10.0.0.1:6379"; unset: `RAY_ADDRESS`, or the cluster that this host belongs to."""
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")] = "stylegan"
    """What the deployments in the Ray cluster begin with: several servers may share one."""
    patience: Seconds = 600.0
    """Seconds that `python -m api deploy` and `down` wait for the Ray cluster to do what they ask."""
    ingress: IngressConf = IngressConf()
    """Ray Serve as the way in, where models live in a Ray cluster."""
    redis: RedisUrl | None = None
    """Redis or Valkey, such as "redis://:password@host:6379/0", where several hosts share limits and wake each other's event streams."""
    cache: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Seconds for which `redis` keeps pictures that URLs name (GET `/{model_id}/image`) for all hosts, without a history; 0: none."""


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
