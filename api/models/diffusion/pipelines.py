"""Pipelines of the diffusers library: how they are found, loaded and set up, and one set of weights for all that they can do."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import AutoPipelineForImage2Image, AutoPipelineForInpainting, AutoPipelineForText2Image
from diffusers.configuration_utils import FrozenDict
from torch import nn

from api.conf import DiffusionConf, is_hub
from api.errors import ConfigError
from api.models.base import Place
from api.models.diffusion.steadiness import steady
from api.models.formats.diffusers import PIPELINES, hub_name, read_index

Pipeline = Any  # diffusers gives its pipelines no types
MODES = {"txt2img": AutoPipelineForText2Image, "img2img": AutoPipelineForImage2Image, "inpaint": AutoPipelineForInpainting}


def load_pipeline(file: Path, pipeline: str | None, conf: DiffusionConf, place: Place) -> Pipeline:
    """The pipeline on its device, ready to run. ``pipeline`` names the class of a single checkpoint. Raises ``ConfigError``."""
    with quiet():
        loaded = open_pipeline(file, pipeline, conf, getattr(torch, place.precision))
        apply_loras(loaded, conf.loras)
        check_parts(loaded)
        settle(loaded, conf, place)
    return loaded


class quiet:  # noqa: N801
    """Keeps what the libraries tell their developers out of the log; errors are raised as ever."""

    def __enter__(self) -> None:
        import transformers

        diffusers.utils.logging.set_verbosity_error()
        diffusers.utils.logging.disable_progress_bar()
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        self.filter = warnings.catch_warnings()
        self.filter.__enter__()
        warnings.simplefilter("ignore")

    def __exit__(self, *details: Any) -> None:
        self.filter.__exit__(*details)


def open_pipeline(file: Path, pipeline: str | None, conf: DiffusionConf, dtype: torch.dtype) -> Pipeline:
    if not is_hub(file) and file.is_file():
        return open_file(file, str(pipeline), conf, dtype)
    folder = download(hub_name(file), conf) if is_hub(file) else file
    index = read_index(folder)
    cls = getattr(diffusers, index["_class_name"])
    # Without pickles the loader insists on safetensors; with them it prefers safetensors.
    return cls.from_pretrained(folder, torch_dtype=dtype, use_safetensors=None if conf.allow_pickle else True, local_files_only=True)


def download(name: str, conf: DiffusionConf) -> Path:
    """The folder of a model on the hub, fetched if it is not here yet; the library shows a progress bar. Raises ``ConfigError``."""
    from diffusers import DiffusionPipeline

    try:
        diffusers.utils.logging.enable_progress_bar()
        found = DiffusionPipeline.download(name, revision=conf.revision, use_safetensors=None if conf.allow_pickle else True)
    except Exception as error:  # the hub's client raises many kinds
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConfigError(
            f"hub:{name}: cannot be had from the hub and is not in the local cache ({first}). Is this machine offline, the name or the "
            "revision wrong, or a token (HF_TOKEN) needed? A folder that was downloaded elsewhere can be given as `file` instead"
        ) from error
    return Path(found)


def open_file(file: Path, pipeline: str, conf: DiffusionConf, dtype: torch.dtype) -> Pipeline:
    """A single checkpoint. What its networks look like stands in a folder of configurations, the given one or one on the hub."""
    folder = conf.config
    cls = getattr(diffusers, read_index(folder)["_class_name"] if folder else pipeline)
    options: dict[str, Any] = {"config": str(folder), "local_files_only": True} if folder else {}
    try:
        return cls.from_single_file(str(file), torch_dtype=dtype, **options)
    except (OSError, ValueError) as error:
        if folder:
            raise
        raise ConfigError(
            f"{file}: the description of this {pipeline} cannot be had from the hub ({str(error).splitlines()[0]}); offline, name a "
            "folder in diffusers' layout as `diffusion.config`"
        ) from error


def apply_loras(pipeline: Pipeline, loras: Mapping[str, float]) -> None:
    """Adds LoRA weights to the networks' own, for good. Raises ``ConfigError``."""
    for file, weight in loras.items():
        path = Path(file)
        if not os.path.isfile(path) or path.suffix != ".safetensors":
            raise ConfigError(f"{path}: a LoRA is a safetensors file, and there is none of this name")
        if not hasattr(pipeline, "load_lora_weights"):
            raise ConfigError(f"{type(pipeline).__name__} takes no LoRA")
        pipeline.load_lora_weights(str(path.parent), weight_name=path.name, adapter_name="lora", local_files_only=True)
        pipeline.fuse_lora(lora_scale=weight)
        pipeline.unload_lora_weights()


def check_parts(pipeline: Pipeline) -> None:
    """Raises ``ConfigError`` for a folder that lacks what a picture needs."""
    if type(pipeline).__name__ not in PIPELINES:
        raise ConfigError(f"{type(pipeline).__name__} is not served; known: {', '.join(PIPELINES)}")
    optional = {"safety_checker", "feature_extractor", "image_encoder", *type(pipeline)._optional_components}
    for name, part in pipeline.components.items():
        if part is None and name not in optional:
            raise ConfigError(f"the pipeline's {name} is missing")


def settle(pipeline: Pipeline, conf: DiffusionConf, place: Place) -> None:
    """Puts the networks on their device as the configuration wants them."""
    pipeline.set_progress_bar_config(disable=True)
    pipeline.vae.enable_slicing()
    if conf.vae_tiling:
        pipeline.vae.enable_tiling()
    for part in pipeline.components.values():
        if isinstance(part, nn.Module):
            part.eval().requires_grad_(False)
    if conf.offload != "none":
        offload(pipeline, conf.offload, place.device)
    else:
        pipeline.to(place.device)
    if place.device == "cpu":
        steady(network_of(pipeline))
        pipeline.vae.to(memory_format=torch.channels_last)
    if conf.attention_slicing:
        pipeline.enable_attention_slicing()
    if conf.compile:
        network_of(pipeline).compile()


def offload(pipeline: Pipeline, kind: str, device: str) -> None:
    if device == "cpu":
        raise ConfigError(f'diffusion.offload = "{kind}" is for GPUs, and this model lives on the CPU; use "none"')
    (pipeline.enable_model_cpu_offload if kind == "model" else pipeline.enable_sequential_cpu_offload)(device=device)


def network_of(pipeline: Pipeline) -> Any:
    """The denoising network, U-Net or transformer."""
    return pipeline.unet if "unet" in pipeline.components else pipeline.transformer


def pipelines_by_mode(pipeline: Pipeline) -> dict[str, Pipeline]:
    """Pipelines that share the weights of one: what this one can do. Inpainting networks can do nothing else."""
    network = network_of(pipeline)
    own_channels = getattr(pipeline.vae.config, "latent_channels", 4)
    special = "unet" in pipeline.components and network.config.in_channels != own_channels
    found = {}
    with quiet():
        for mode, auto in MODES.items():
            if special and mode != "inpaint":
                continue
            try:
                found[mode] = auto.from_pipe(pipeline)
            except ValueError:
                continue  # the library has no such pipeline for this kind of model
            found[mode].set_progress_bar_config(disable=True)
    if "inpaint" in found:
        keep_soft_masks(found["inpaint"])
        if "unet" in pipeline.components and not special and own_channels != 4:
            found["inpaint"].unet = Plain(network)
    return found


def keep_soft_masks(pipeline: Pipeline) -> None:
    pipeline.mask_processor.register_to_config(do_binarize=False)


class Plain(nn.Module):
    """A U-Net that says it has four channels: the library takes all others for networks that were made for inpainting."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network
        self.config = FrozenDict({**network.config, "in_channels": 4})

    @property
    def dtype(self) -> torch.dtype:
        found: torch.dtype = self.network.dtype
        return found

    @property
    def device(self) -> torch.device:
        found: torch.device = self.network.device
        return found

    def forward(self, *arguments: Any, **options: Any) -> Any:
        return self.network(*arguments, **options)
