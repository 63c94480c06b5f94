"""Diffusion pipelines: pictures from words, from a picture and words, and parts of a picture made anew.

A batch is one denoising loop over the jobs of one shape, each with its own generator on the CPU. ``key`` keeps apart what cannot share a
loop, and what would make a picture depend on its company.
"""

from __future__ import annotations

import dataclasses
import hashlib
import secrets
from collections.abc import Hashable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from msgspec.structs import replace

from api.conf import DiffusionConf, ModelConf, is_hub
from api.errors import BadInput, ConfigError
from api.models.base import Checkpoint, Info, Model, Place, Step, go_on
from api.models.diffusion import prompts, schedulers
from api.models.diffusion.pipelines import Pipeline, load_pipeline, network_of, pipelines_by_mode
from api.models.diffusion.runs import Decoder, Parts, Run
from api.models.diffusion.texts import kind_of, texts_of
from api.models.jobs import Diffuse, Job, Output, Pixels
from api.models.pictures import near_size

SEEDS = 1 << 32
SMALLEST = 64
LARGEST_DEFAULT = 2048
MAX_GUIDANCE = 100.0
MAX_PROMPT = 100_000  # characters; routes may allow less
MAX_WINDOWS = 16  # of a text encoder that one prompt may fill
STRENGTHS = {"img2img": 0.75, "inpaint": 1.0}


def load(checkpoint: Checkpoint, conf: ModelConf, place: Place) -> Model:
    """Raises ``ConfigError`` if the pipeline cannot be had or cannot do what the configuration wants."""
    pipeline = load_pipeline(conf.file, checkpoint.description.arguments.get("pipeline"), conf.diffusion, place)
    if is_hub(conf.file):  # the configuration alone does not tell which pictures a branch gives
        digest = hashlib.sha256(f"{place.digest} {pipeline.config.get('_name_or_path')}".encode()).hexdigest()[:32]
        place = dataclasses.replace(place, digest=digest)
    model = Diffusion(pipeline, conf, place)
    if conf.warmup:
        warm_up(model)
    return model


def warm_up(model: Diffusion) -> None:
    """One step of the first thing that the model can do: the first kernels are slow."""
    width, height = model.native
    image, mask = np.zeros((height, width, 3), np.uint8), np.full((height, width), 255, np.uint8)
    given: dict[str, Any] = {"txt2img": {}, "img2img": {"image": image}, "inpaint": {"image": image, "mask": mask}}
    job = Diffuse(model=model.info.id, seed=0, prompt="", steps=1, **given[next(iter(model.pipelines))])
    model.run([model.prepare(replace(job, strength=None if job.image is None else 1.0))], go_on)


class Diffusion:
    """A pipeline as a ``Model``."""

    def __init__(self, pipeline: Pipeline, conf: ModelConf, place: Place) -> None:
        self.conf, self.place, self.pipeline = conf.diffusion, place, pipeline
        self.pipelines = pipelines_by_mode(pipeline)
        self.texts, self.kind = texts_of(pipeline), kind_of(pipeline)
        self.own = pipeline.scheduler
        self.schedulers = schedulers.names_for(self.own)
        self.unit = unit_of(pipeline)
        self.native = native_size(pipeline, self.unit)
        self.largest = self.conf.max_size or min(2 * max(self.native), max(LARGEST_DEFAULT, *self.native))
        self.decoder = Decoder(pipeline)
        self.scheduler = self.default_scheduler()
        self.parts = Parts(self.pipelines, self.texts, self.own, self.decoder, self.takes_negative, place.device == "cpu")
        self.windows = lru_cache(4096)(self.count_windows)
        self.check_schedule = lru_cache(4096)(self.count_steps)
        self.info = describe(self, conf)

    def default_scheduler(self) -> str:
        try:
            return schedulers.canonical(self.conf.scheduler or schedulers.name_of(self.own), self.schedulers)
        except BadInput as error:
            raise ConfigError(f"diffusion.scheduler: {error}") from None

    @property
    def takes_negative(self) -> bool:
        """Whether a negative prompt means something to this network."""
        embedded = getattr(network_of(self.pipeline).config, "time_cond_proj_dim", None) is not None
        return self.kind != "flux" and not embedded

    # Before the queue.

    def prepare(self, job: Job) -> Diffuse:
        """All defaults filled in and everything checked that could fail later. Raises ``BadInput``."""
        if not isinstance(job, Diffuse):
            raise BadInput(f"{self.info.id} is a diffusion model: it makes pictures from prompts, not from latents or styles")
        mode = self.check_mode(job)
        width, height = self.choose_size(job)
        steps = within("steps", self.conf.steps if job.steps is None else job.steps, 1, self.conf.max_steps, job.steps is None)
        guidance = self.conf.guidance if job.guidance_scale is None else job.guidance_scale
        strength = self.check_strength(mode, job.strength)
        scheduler = self.scheduler if job.scheduler is None else schedulers.canonical(job.scheduler, self.schedulers)
        self.check_schedule(scheduler, steps, strength)
        if job.safe and not self.decoder.has_checker:
            raise BadInput(f"{self.info.id} has no safety checker; a picture cannot be checked")
        ready = replace(
            job,
            steps=steps,
            guidance_scale=within("guidance_scale", float(guidance), 0.0, MAX_GUIDANCE),
            width=width,
            height=height,
            strength=strength,
            scheduler=scheduler,
            seed=secrets.randbelow(SEEDS) if job.seed is None else within("seed", job.seed, 0, SEEDS - 1),
        )
        self.check_prompts(ready)
        return ready

    def check_mode(self, job: Diffuse) -> str:
        mode = mode_of(job)
        if mode not in self.pipelines:
            raise BadInput(f"{self.info.id} ({type(self.pipeline).__name__}) cannot do {mode}; it can do {', '.join(self.pipelines)}")
        if job.image is not None and (
            job.image.dtype != np.uint8 or job.image.ndim != 3 or job.image.shape[2] != 3 or 0 in job.image.shape
        ):
            raise BadInput(f"the initial picture is {job.image.dtype} {job.image.shape}; uint8 (height, width, 3) is expected")
        if job.mask is not None:
            assert job.image is not None
            if job.mask.dtype != np.uint8 or job.mask.shape != job.image.shape[:2]:
                height, width = job.image.shape[:2]
                raise BadInput(
                    f"the mask's shape is {job.mask.shape}; the initial picture's is {width}×{height} pixels, and both must agree"
                )
        return mode

    def choose_size(self, job: Diffuse) -> tuple[int, int]:
        """What is asked for, else about the initial picture's size, else the model's own."""
        wished = {"width": job.width, "height": job.height}
        own = self.native if job.image is None else near_size(job.image.shape[1], job.image.shape[0], self.info.extra)
        found = [own[i] if wished[name] is None else int(wished[name] or 0) for i, name in enumerate(wished)]
        smallest = min(SMALLEST, *self.native)
        for name, side in zip(wished, found, strict=True):
            within(name, side, smallest, self.largest)
            if side % self.unit:
                raise BadInput(
                    f"{name} is {side}; a multiple of {self.unit} is needed, such as {max(self.unit, side // self.unit * self.unit)}"
                )
        return found[0], found[1]

    def check_strength(self, mode: str, strength: float | None) -> float | None:
        if mode == "txt2img":
            if strength is not None:
                raise BadInput("strength tells how far to leave the initial picture, and there is none")
            return None
        value = STRENGTHS[mode] if strength is None else strength
        if not 0 < value <= 1:
            raise BadInput(f"strength is {value:g}; it must be above 0 and at most 1")
        return value

    def count_steps(self, scheduler: str, steps: int, strength: float | None) -> None:
        """Raises ``BadInput`` if nothing would be left to do, or more than the scheduler can."""
        if strength is not None and int(steps * strength) < 1:
            raise BadInput(f"steps × strength is {steps} × {strength:g}: no step would be left; it must be at least 1")
        if scheduler == "lcm":
            limit = int(self.own.config.get("original_inference_steps", 50) * (1.0 if strength is None else strength))
            if steps > limit:
                raise BadInput(
                    f"steps is {steps}; the scheduler lcm takes at most {limit}" + (f" at strength {strength:g}" if strength else "")
                )

    def check_prompts(self, job: Diffuse) -> None:
        for name, text in (("prompt", job.prompt), ("negative_prompt", job.negative_prompt or "")):
            if len(text) > MAX_PROMPT:
                raise BadInput(f"{name} has {len(text)} characters; at most {MAX_PROMPT} are allowed")
        if job.negative_prompt and not self.takes_negative:
            raise BadInput(f"{self.info.id} ({type(self.pipeline).__name__}) takes no negative_prompt")
        if (count := self.windows(job.prompt, job.negative_prompt or "", job.steps or 1)) > MAX_WINDOWS:
            raise BadInput(f"the prompt fills {count} windows of the text encoder; at most {MAX_WINDOWS} are allowed")

    def count_windows(self, prompt: str, negative: str, steps: int) -> int:
        """The windows of the text encoders that the longest of the prompts fills at any step."""
        return max(self.texts.count(prompts.read(text).variants(steps)) for text in (prompt, negative))

    def key(self, job: Job) -> Hashable:
        assert isinstance(job, Diffuse)
        windows = self.windows(job.prompt, job.negative_prompt or "", job.steps or 1)
        return mode_of(job), job.width, job.height, job.steps, job.guidance_scale, job.strength, job.scheduler, windows

    # On the device.

    def run(self, jobs: Sequence[Job], step: Step) -> Sequence[Output]:
        """One denoising loop for all jobs, which have one key; ``step`` is called before it and after each of its steps."""
        drafts = [job for job in jobs if isinstance(job, Diffuse)]
        if not drafts:
            return []
        first = drafts[0]
        loop = Run(self.parts, drafts, self.windows(first.prompt, first.negative_prompt or "", first.steps or 1), step)
        with torch.inference_mode():
            latents = loop.denoise()
            images = []
            for index, job in enumerate(drafts):
                images.append(self.decoder.decode(latents[index : index + 1], job, always=self.conf.safety_checker))
                if index + 1 < len(drafts):
                    step(loop.total, loop.total)  # decoding is long too
        return [finish(job, image, flagged) for job, (image, flagged) in zip(drafts, images, strict=True)]


def finish(job: Diffuse, image: Pixels, flagged: bool | None) -> Output:
    extra = parameters(job)
    if flagged is not None:
        extra["flagged"] = flagged
    return Output(image=image, seed=job.seed or 0, extra=extra)


def parameters(job: Diffuse) -> dict[str, str | int | float | bool | None]:
    """What was really used."""
    names = ("prompt", "negative_prompt", "steps", "guidance_scale", "width", "height", "scheduler", "strength")
    return {name: getattr(job, name) for name in names}


def mode_of(job: Diffuse) -> str:
    if job.image is None:
        if job.mask is not None:
            raise BadInput("there is a mask and no initial picture")
        return "txt2img"
    return "img2img" if job.mask is None else "inpaint"


def within(name: str, value: Any, low: Any, high: Any, clip: bool = False) -> Any:
    """The value, which must lie between the bounds; a default is clipped instead."""
    if clip:
        return min(max(value, low), high)
    if not low <= value <= high:
        raise BadInput(f"{name} is {value}; it must be {low} to {high}")
    return value


def unit_of(pipeline: Pipeline) -> int:
    """Of what sides must be multiples: a pixel of the latents, times two where a transformer takes them in patches."""
    return max(8, int(pipeline.vae_scale_factor) * (1 if "unet" in pipeline.components else 2))


def native_size(pipeline: Pipeline, unit: int) -> tuple[int, int]:
    """Width and height of the pictures that the network was trained on."""
    size = getattr(pipeline, "default_sample_size", None) or network_of(pipeline).config.sample_size
    height, width = (size, size) if isinstance(size, int) else size
    found = [max(unit, side * pipeline.vae_scale_factor // unit * unit) for side in (width, height)]
    return found[0], found[1]


def describe(model: Diffusion, conf: ModelConf) -> Info:
    place, limits = model.place, model.conf
    extra: Mapping[str, Any] = {
        "pipeline": type(model.pipeline).__name__,
        "modes": list(model.pipelines),
        "schedulers": list(model.schedulers),
        "scheduler": model.scheduler,
        "steps": min(limits.steps, limits.max_steps),
        "guidance_scale": limits.guidance,
        "max_steps": limits.max_steps,
        "max_size": model.largest,
        "min_size": min(SMALLEST, *model.native),
        "size_unit": model.unit,
        "max_pictures": limits.max_pictures,
        "negative_prompt": model.takes_negative,
        "example": limits.example or conf.description or conf.name or place.id,
        "safety_checker": safety(model.decoder.has_checker, limits),
    }
    return Info(
        id=place.id,
        name=conf.name or place.id,
        description=conf.description,
        family="diffusion",
        width=model.native[0],
        height=model.native[1],
        lossy=place.lossy,
        device=place.device,
        digest=place.digest,
        kinds=(Diffuse.__name__,),
        parameters=sum(
            p.numel() for part in model.pipeline.components.values() if isinstance(part, torch.nn.Module) for p in part.parameters()
        ),
        long=True,
        extra=extra,
    )


def safety(has_checker: bool, conf: DiffusionConf) -> str:
    """When pictures are checked."""
    return "never" if not has_checker else "always" if conf.safety_checker else "on request"
