"""Pipelines of random weights, small enough to train in a second: one function a class, which makes it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderTiny,
    DDIMScheduler,
    DiffusionPipeline,
    EulerAncestralDiscreteScheduler,
    LatentConsistencyModelPipeline,
    LCMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from helpers.flow_pipelines import FLOW_PIPELINES
from helpers.text_encoders import WIDTH, clip_config, tokenizer
from sdpo.backbones.load import EMBEDDED


def unet(**extra: Any) -> UNet2DConditionModel:
    settings: dict[str, Any] = dict(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        cross_attention_dim=WIDTH,
        attention_head_dim=2,
        norm_num_groups=4,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )
    return UNet2DConditionModel(**settings | extra)


def vae() -> AutoencoderTiny:
    return AutoencoderTiny(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    )


def ddim() -> DDIMScheduler:
    """The scheduler as users of SD-Turbo set it up: trailing timesteps."""
    return DDIMScheduler.from_pretrained(EMBEDDED["emoji"] / "scheduler")


def stable_diffusion() -> StableDiffusionPipeline:
    words = tokenizer()
    network, decoder = unet(), vae()
    return StableDiffusionPipeline(
        vae=decoder,
        text_encoder=CLIPTextModel(clip_config(len(words))),
        tokenizer=words,
        unet=network,
        scheduler=ddim(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def stable_diffusion_xl() -> StableDiffusionXLPipeline:
    """With SDXL-Turbo's scheduler."""
    words = tokenizer()
    config = clip_config(len(words), projection_dim=8)
    network = unet(
        cross_attention_dim=2 * WIDTH,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 8,
    )
    return StableDiffusionXLPipeline(
        vae=vae(),
        text_encoder=CLIPTextModel(config),
        text_encoder_2=CLIPTextModelWithProjection(config),
        tokenizer=words,
        tokenizer_2=words,
        unet=network,
        scheduler=EulerAncestralDiscreteScheduler.from_config(ddim().config, prediction_type="epsilon"),
        add_watermarker=False,
    )


def latent_consistency() -> LatentConsistencyModelPipeline:
    words = tokenizer()
    return LatentConsistencyModelPipeline(
        vae=vae(),
        text_encoder=CLIPTextModel(clip_config(len(words))),
        tokenizer=words,
        unet=unet(time_cond_proj_dim=8),
        scheduler=LCMScheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


PIPELINES: dict[str, Callable[[], Any]] = {
    "StableDiffusionPipeline": stable_diffusion,
    "StableDiffusionXLPipeline": stable_diffusion_xl,
    "LatentConsistencyModelPipeline": latent_consistency,
    **FLOW_PIPELINES,
}
"""By class name; every one trains, samples and loads again in the tests of the families."""


def write_pipeline(name: str, path: Path) -> Path:
    """Write the pipeline of that class to disk; its weights are always the same."""
    torch.manual_seed(0)
    PIPELINES[name]().save_pretrained(path, safe_serialization=True)
    return path


def load_pipeline(path: Path, dtype: torch.dtype = torch.float32) -> Any:
    """The pipeline that was written to a folder, as diffusers loads it."""
    return DiffusionPipeline.from_pretrained(path, dtype=dtype)
