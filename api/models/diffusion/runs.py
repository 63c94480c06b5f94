"""One denoising loop for a batch of jobs, and what makes a picture of latents."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from api.models.base import Step
from api.models.diffusion import prompts, schedulers
from api.models.diffusion.pipelines import Pipeline, network_of, quiet
from api.models.diffusion.steadiness import ROWS
from api.models.diffusion.texts import Texts, Told
from api.models.jobs import Diffuse, Pixels
from api.models.pictures import resize

SMALL = 16 * 16  # latents that are decoded for a preview; larger ones are mapped to colours one by one
PROBE = 32


@dataclass(frozen=True)
class Parts:
    """What a model has for its runs."""

    pipelines: Mapping[str, Pipeline]  # by mode
    texts: Texts
    own: schedulers.Scheduler
    decoder: Decoder
    guided: bool  # whether guidance by a negative prompt means something to the network
    steady: bool  # whether pictures must not depend on their company, which only CPUs can promise


class Run:
    """Jobs of one key on their way; their prompts fill ``windows``. ``step`` is the lane's."""

    def __init__(self, parts: Parts, jobs: Sequence[Diffuse], windows: int, step: Step) -> None:
        self.parts, self.windows, self.step, self.count = parts, windows, step, len(jobs)
        first = jobs[0]
        self.steps, self.guidance, self.strength = first.steps or 1, first.guidance_scale or 0.0, first.strength
        self.width, self.height = first.width or 0, first.height or 0
        self.mode = "txt2img" if first.image is None else "img2img" if first.mask is None else "inpaint"
        self.pipeline: Pipeline = parts.pipelines[self.mode]
        self.guided = parts.guided and self.guidance > 1
        # Alone, a picture is computed in the company of its own copy where a single row would take other kernels.
        lonely = parts.steady and self.count * (1 + self.guided) < ROWS
        self.jobs = [*jobs, *jobs] if lonely else list(jobs)
        self.total = self.steps
        self.prompts = [(prompts.read(job.prompt), prompts.read(job.negative_prompt or "")) for job in self.jobs]
        self.shown: tuple[Any, ...] = ()

    def denoise(self) -> Tensor:
        """Latents (jobs, channels, height, width), ready to decode."""
        self.step(0, self.total)
        pipeline = self.pipeline
        options = {**self.texts_at(0), **self.pictures(), **self.settings()}
        known = inspect.signature(pipeline.__call__).parameters
        with quiet():
            pipeline.scheduler = schedulers.build(self.jobs[0].scheduler or schedulers.OWN, self.parts.own)
            latents = pipeline(**{name: value for name, value in options.items() if name in known})[0]
        return self.parts.decoder.unpack(latents, self.height, self.width)[: self.count]

    def settings(self) -> dict[str, Any]:
        return {
            "num_inference_steps": self.steps,
            "guidance_scale": self.guidance,
            "strength": self.strength,
            "width": self.width,
            "height": self.height,
            "generator": [torch.Generator().manual_seed(job.seed or 0) for job in self.jobs],
            "output_type": "latent",
            "return_dict": False,
            "callback_on_step_end": self.end_step,
        }

    def pictures(self) -> dict[str, Tensor]:
        """Initial pictures (N, 3, H, W) and masks (N, 1, H, W) in [0, 1]."""
        found = {}
        if self.mode != "txt2img":
            found["image"] = torch.cat([self.take(job.image) for job in self.jobs])
        if self.mode == "inpaint":
            found["mask_image"] = torch.cat([self.take(job.mask) for job in self.jobs])
        return found

    def take(self, picture: Pixels | None) -> Tensor:
        assert picture is not None  # the mode says so
        return as_tensor(resize(picture, self.width, self.height))

    def texts_at(self, index: int) -> dict[str, Tensor]:
        """What the pipeline is told of the prompts before the first step."""
        positive, negative = self.tell(index)
        found = {"prompt_embeds": positive.tokens, "pooled_prompt_embeds": positive.pooled}
        if self.guided:
            found |= {"negative_prompt_embeds": negative.tokens, "negative_pooled_prompt_embeds": negative.pooled}
        self.shown = self.pieces(index)
        return {name: value for name, value in found.items() if value is not None}

    def pieces(self, index: int) -> tuple[Any, ...]:
        return tuple((positive.at(index, self.steps), negative.at(index, self.steps)) for positive, negative in self.prompts)

    def tell(self, index: int) -> tuple[Told, Told]:
        texts = self.parts.texts
        pairs = self.pieces(index)
        positive = stack([texts.encode(pieces, self.windows) for pieces, _ in pairs])
        return positive, stack([texts.encode_negative(pieces, self.windows) for _, pieces in pairs]) if self.guided else positive

    def end_step(self, pipeline: Pipeline, index: int, timestep: Any, found: dict[str, Tensor]) -> dict[str, Tensor]:
        """Called by the pipeline after each of its steps; lets the lane go on with others and changes prompts that take turns."""
        self.total = int(pipeline.num_timesteps)
        latents = found["latents"]

        def previews() -> list[Pixels | None]:
            with torch.inference_mode():
                return [*self.parts.decoder.preview(self.parts.decoder.unpack(latents, self.height, self.width)[: self.count])]

        self.step(index + 1, self.total, previews)
        if index + 1 < self.total and self.pieces(self.place(index + 1)) != self.shown:
            return self.changed(self.place(index + 1))
        return {}

    def place(self, index: int) -> int:
        """The step of the whole way that the pipeline's ``index`` is: with an initial picture it begins later."""
        return min(self.steps - 1, index + max(0, self.steps - self.total))

    def changed(self, index: int) -> dict[str, Tensor]:
        positive, negative = self.tell(index)
        self.shown = self.pieces(index)
        tokens = torch.cat([negative.tokens, positive.tokens]) if self.guided else positive.tokens
        found = {"prompt_embeds": tokens}
        if positive.pooled is not None:
            pooled = positive.pooled
            if self.guided and negative.pooled is not None:
                pooled = torch.cat([negative.pooled, pooled])
            found |= {"add_text_embeds": pooled, "pooled_prompt_embeds": pooled}
        return found


def stack(told: Sequence[Told]) -> Told:
    pooled = [one.pooled for one in told if one.pooled is not None]
    return Told(torch.cat([one.tokens for one in told]), torch.cat(pooled) if pooled else None)


def as_tensor(picture: Pixels) -> Tensor:
    """uint8 (H, W) or (H, W, 3) ↦ (1, channels, H, W) in [0, 1]."""
    planes = picture[None] if picture.ndim == 2 else picture.transpose(2, 0, 1)
    return torch.from_numpy(np.array(planes))[None].float() / 255


class Decoder:
    """Makes pictures of latents: the autoencoder's decoder, the safety checker, and for previews a linear map."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline, self.vae = pipeline, pipeline.vae
        self.has_checker = getattr(pipeline, "safety_checker", None) is not None
        self.colours: Tensor | None = None

    def unpack(self, latents: Tensor, height: int, width: int) -> Tensor:
        """Flux keeps latents as rows of 2×2 patches."""
        if latents.ndim == 4:
            return latents
        found: Tensor = self.pipeline._unpack_latents(latents, height, width, self.pipeline.vae_scale_factor)
        return found

    def render(self, latents: Tensor) -> Tensor:
        """(1, channels, h, w) ↦ (1, 3, H, W) in [0, 1]."""
        vae, config = self.vae, self.vae.config
        if config.get("force_upcast") and vae.dtype == torch.float16:
            vae.to(torch.float32)  # its activations exceed half precision
        latents = latents.to(vae.dtype)
        if (mean := config.get("latents_mean")) is not None and (deviation := config.get("latents_std")) is not None:
            mean, deviation = (torch.tensor(v, dtype=latents.dtype, device=latents.device).view(1, -1, 1, 1) for v in (mean, deviation))
            latents = latents * deviation / config.scaling_factor + mean
        else:
            latents = latents / config.scaling_factor + (config.get("shift_factor") or 0.0)
        image: Tensor = vae.decode(latents, return_dict=False)[0]
        return (image.float() / 2 + 0.5).nan_to_num_().clamp_(0, 1)

    def decode(self, latents: Tensor, job: Diffuse, always: bool) -> tuple[Pixels, bool | None]:
        """One picture, and whether the safety checker found fault with it (it is black then); ``None`` if it was not asked."""
        image = self.render(latents)
        flagged = None
        if self.has_checker and (always or job.safe):
            flagged = self.check(image)
        if flagged:
            image = torch.zeros_like(image)
        pixels = np.asarray((image[0] * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy())
        return (pixels if flagged else restore(pixels, job)), flagged

    def check(self, image: Tensor) -> bool:
        with quiet():
            _, found = self.pipeline.run_safety_checker(image * 2 - 1, image.device, network_of(self.pipeline).dtype)
        return bool(found[0])

    def preview(self, latents: Tensor) -> list[Pixels]:
        """Small pictures of latents that are still noisy."""
        latents = latents.float() / latents.float().std(dim=(1, 2, 3), keepdim=True).clamp(min=1.0)
        if latents.shape[2] * latents.shape[3] <= SMALL:
            images = torch.cat([self.render(one[None]) for one in latents])
        else:
            images = torch.einsum("nchw,cr->nrhw", latents, self.colour_map()[:-1].to(latents.device))
            images = (images + self.colour_map()[-1][None, :, None, None].to(latents.device)).clamp(0, 1)
        return list((images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy())

    def colour_map(self) -> Tensor:
        """(channels + 1, 3): the linear map from latents to colours that fits the decoder best on random patches."""
        if self.colours is None:
            channels = self.vae.config.latent_channels
            patches = torch.randn(1, channels, PROBE // 4, PROBE // 4, generator=torch.Generator().manual_seed(0))
            latents = F.interpolate(patches, scale_factor=4).to(self.vae.device)
            image = F.adaptive_avg_pool2d(self.render(latents), PROBE).cpu()
            rows = torch.cat([latents[0].float().cpu().flatten(1).T, torch.ones(PROBE * PROBE, 1)], 1)
            self.colours = torch.linalg.lstsq(rows, image[0].flatten(1).T).solution
        return self.colours


def restore(pixels: Pixels, job: Diffuse) -> Pixels:
    """What the mask keeps is the initial picture's, pixel for pixel."""
    if job.image is None or job.mask is None:
        return pixels
    height, width = pixels.shape[:2]
    share = resize(job.mask, width, height)[:, :, None].astype(np.float32) / 255
    mixed = pixels * share + resize(job.image, width, height) * (1 - share)
    return np.round(mixed).astype(np.uint8)
