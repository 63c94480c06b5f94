# mypy: allow-untyped-calls, disable-error-code="attr-defined,no-any-return"
"""Tiny random pipelines of every architecture that is served: whole, saved in diffusers' layout, a few hundred kilobytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    DDIMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    LatentConsistencyModelPipeline,
    LCMScheduler,
    PNDMScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

WIDTH, WINDOW = 32, 16
LETTERS = "abcdefghijklmnopqrstuvwxyz,"
VOCABULARY = {token: i for i, token in enumerate([*LETTERS, *(letter + "</w>" for letter in LETTERS), "<|startoftext|>", "<|endoftext|>"])}


def clip_tokenizer() -> CLIPTokenizer:
    """Letter by letter."""
    return CLIPTokenizer(vocab=VOCABULARY, merges=[], model_max_length=WINDOW)


def t5_tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((letter, -3.0) for letter in "▁" + LETTERS)]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=64)


def clip_config(width: int = WIDTH) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=width,
        intermediate_size=2 * width,
        projection_dim=width,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=WINDOW,
        bos_token_id=len(VOCABULARY) - 2,
        eos_token_id=len(VOCABULARY) - 1,
        pad_token_id=len(VOCABULARY) - 1,
    )


def t5() -> T5EncoderModel:
    return T5EncoderModel(T5Config(vocab_size=32, d_model=WIDTH, d_kv=8, d_ff=32, num_layers=1, num_heads=2)).eval()


def vae(channels: int = 4, **options: Any) -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
        block_out_channels=[16, 16],
        layers_per_block=1,
        latent_channels=channels,
        norm_num_groups=4,
        sample_size=32,
        **options,
    ).eval()


def small_vae(channels: int) -> AutoencoderTiny:
    return AutoencoderTiny(
        encoder_block_out_channels=(16, 16),
        decoder_block_out_channels=(16, 16),
        num_encoder_blocks=(0, 1),
        num_decoder_blocks=(1, 0),
        latent_channels=channels,
        scaling_factor=1.0,
    ).eval()


def unet(channels: int = 4, **options: Any) -> UNet2DConditionModel:
    options = {"cross_attention_dim": WIDTH, "in_channels": channels, "out_channels": channels, **options}
    return UNet2DConditionModel(
        sample_size=16,
        down_block_types=["CrossAttnDownBlock2D", "DownBlock2D"],
        up_block_types=["UpBlock2D", "CrossAttnUpBlock2D"],
        block_out_channels=[16, 32],
        layers_per_block=1,
        attention_head_dim=4,
        norm_num_groups=4,
        **options,
    ).eval()


def parts(**options: Any) -> dict[str, Any]:
    found = {"vae": vae(), "text_encoder": CLIPTextModel(clip_config()).eval(), "tokenizer": clip_tokenizer(), "unet": unet()}
    return found | {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False} | options


def sd() -> Any:
    return StableDiffusionPipeline(**parts(scheduler=PNDMScheduler(skip_prk_steps=True, steps_offset=1)))


def sd_wide() -> Any:
    """Latents of eight channels and a small autoencoder, as the project's own pipeline has; v-prediction as in Stable Diffusion 2."""
    scheduler = DDIMScheduler(prediction_type="v_prediction", timestep_spacing="trailing", clip_sample=False, steps_offset=1)
    return StableDiffusionPipeline(**parts(vae=small_vae(8), unet=unet(8), scheduler=scheduler))


def sd_inpaint() -> Any:
    scheduler = DDIMScheduler(clip_sample=False, steps_offset=1)
    return StableDiffusionInpaintPipeline(**parts(unet=unet(in_channels=9), scheduler=scheduler))


def lcm() -> Any:
    return LatentConsistencyModelPipeline(**parts(unet=unet(time_cond_proj_dim=16), scheduler=LCMScheduler()))


def sdxl() -> Any:
    return StableDiffusionXLPipeline(
        vae=vae(),
        text_encoder=CLIPTextModel(clip_config()).eval(),
        text_encoder_2=CLIPTextModelWithProjection(clip_config()).eval(),
        tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(),
        unet=unet(
            cross_attention_dim=2 * WIDTH,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=WIDTH + 6 * 8,
        ),
        scheduler=EulerDiscreteScheduler(timestep_spacing="leading", steps_offset=1),
        add_watermarker=False,
    )


def sd3() -> Any:
    transformer = SD3Transformer2DModel(
        sample_size=16,
        patch_size=1,
        in_channels=16,
        out_channels=16,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=WIDTH,
        caption_projection_dim=32,
        pooled_projection_dim=32,
        pos_embed_max_size=32,
    ).eval()
    return StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae(16, shift_factor=0.05, scaling_factor=1.5),
        text_encoder=CLIPTextModelWithProjection(clip_config(16)).eval(),
        tokenizer=clip_tokenizer(),
        text_encoder_2=CLIPTextModelWithProjection(clip_config(16)).eval(),
        tokenizer_2=clip_tokenizer(),
        text_encoder_3=t5(),
        tokenizer_3=t5_tokenizer(),
    )


def flux() -> Any:
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        axes_dims_rope=[4, 4, 8],
        guidance_embeds=True,
    ).eval()
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae(4, shift_factor=0.05, scaling_factor=1.5, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=CLIPTextModel(clip_config()).eval(),
        tokenizer=clip_tokenizer(),
        text_encoder_2=t5(),
        tokenizer_2=t5_tokenizer(),
        transformer=transformer,
    )


BUILDERS = {"sd": sd, "sd_wide": sd_wide, "sd_inpaint": sd_inpaint, "lcm": lcm, "sdxl": sdxl, "sd3": sd3, "flux": flux}


def save(name: str, folder: Path) -> Path:
    """Builds the pipeline of that name (always the same) and saves it in ``folder / name``."""
    torch.manual_seed(7)
    target = folder / name
    BUILDERS[name]().save_pretrained(target)
    return target


# The same weights in one file, under the names of the original code (CompVis' latent diffusion), which diffusers' loader turns back.

RESNET = {"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0", "conv2": "out_layers.3"}
UNET_PLACES = {  # of a network with one layer per block and attention in the first
    "conv_in": "input_blocks.0.0",
    "down_blocks.0.resnets.0": "input_blocks.1.0",
    "down_blocks.0.attentions.0": "input_blocks.1.1",
    "down_blocks.0.downsamplers.0.conv": "input_blocks.2.0.op",
    "down_blocks.1.resnets.0": "input_blocks.3.0",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
    "up_blocks.0.resnets.0": "output_blocks.0.0",
    "up_blocks.0.resnets.1": "output_blocks.1.0",
    "up_blocks.0.upsamplers.0.conv": "output_blocks.1.1.conv",
    "up_blocks.1.resnets.0": "output_blocks.2.0",
    "up_blocks.1.attentions.0": "output_blocks.2.1",
    "up_blocks.1.resnets.1": "output_blocks.3.0",
    "up_blocks.1.attentions.1": "output_blocks.3.1",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
VAE_PLACES = {
    "encoder.down_blocks.0.resnets": "encoder.down.0.block",
    "encoder.down_blocks.0.downsamplers.0": "encoder.down.0.downsample",
    "encoder.down_blocks.1.resnets": "encoder.down.1.block",
    "decoder.up_blocks.0.resnets": "decoder.up.1.block",
    "decoder.up_blocks.0.upsamplers.0": "decoder.up.1.upsample",
    "decoder.up_blocks.1.resnets": "decoder.up.0.block",
    **{
        f"{side}.mid_block.{ours}": f"{side}.mid.{theirs}"
        for side in ("encoder", "decoder")
        for ours, theirs in (("resnets.0", "block_1"), ("attentions.0", "attn_1"), ("resnets.1", "block_2"))
    },
}
VAE_PARTS = {
    "conv_shortcut": "nin_shortcut",
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
    "conv_norm_out": "norm_out",
}


def single_file(pipeline: Any, file: Path) -> None:
    """Writes a Stable Diffusion pipeline as one checkpoint."""
    from safetensors.torch import save_file

    found = {}
    for name, tensor in pipeline.unet.state_dict().items():
        place = next(place for place in UNET_PLACES if name.startswith(place + "."))
        rest = name.removeprefix(place)
        if ".resnets." in place:
            rest = rest.replace("conv_shortcut", "skip_connection")
            for ours, theirs in RESNET.items():
                rest = rest.replace(f".{ours}.", f".{theirs}.")
        found[f"model.diffusion_model.{UNET_PLACES[place]}{rest}"] = tensor
    for name, tensor in pipeline.vae.state_dict().items():
        for ours, theirs in VAE_PLACES.items():
            name = name.replace(ours, theirs)
        for ours, theirs in VAE_PARTS.items():
            name = name.replace(f".{ours}.", f".{theirs}.")
        attention = ".attn_1." in name and tensor.ndim == 2
        found[f"first_stage_model.{name}"] = tensor[:, :, None, None] if attention else tensor
    for name, tensor in pipeline.text_encoder.state_dict().items():
        found[f"cond_stage_model.transformer.text_model.{name.removeprefix('text_model.')}"] = tensor
    save_file({name: tensor.contiguous() for name, tensor in found.items()}, file)
