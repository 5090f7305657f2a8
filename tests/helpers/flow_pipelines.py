"""Pipelines of random weights of the flow families: one function a class, which makes it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import (
    AutoencoderDC,
    AutoencoderKL,
    AutoencoderKLFlux2,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
    FluxPipeline,
    FluxTransformer2DModel,
    SanaSprintPipeline,
    SanaTransformer2DModel,
    SCMScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from helpers.text_encoders import WIDTH, clip_config, gemma, qwen, t5, tokenizer
from sdpo.backbones.families.sana_sprint import INSTRUCTION

SIDE = 32
"""Pixels a side of images in tests; what some of the classes make by default, however small their networks, is 1024."""


def autoencoder(channels: int) -> AutoencoderKL:
    """Two pixels a side of each latent; latents are scaled and shifted."""
    return AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=channels,
        scaling_factor=1.5,
        shift_factor=0.06,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def stable_diffusion_3(**scheduler: Any) -> StableDiffusion3Pipeline:
    words = tokenizer()
    large = clip_config(len(words), num_hidden_layers=2, projection_dim=8)
    tokenizer_3, text_encoder_3 = t5(2 * WIDTH)
    return StableDiffusion3Pipeline(
        transformer=SD3Transformer2DModel(
            sample_size=8,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=2 * WIDTH,
            caption_projection_dim=16,
            pooled_projection_dim=16,
            pos_embed_max_size=8,
            dual_attention_layers=(0,),
            qk_norm="rms_norm",
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(**{"shift": 3.0} | scheduler),
        vae=autoencoder(4),
        text_encoder=CLIPTextModelWithProjection(large),
        tokenizer=words,
        text_encoder_2=CLIPTextModelWithProjection(large),
        tokenizer_2=words,
        text_encoder_3=text_encoder_3,
        tokenizer_3=tokenizer_3,
    )


def flux(guidance_embeds: bool = False, **scheduler: Any) -> FluxPipeline:
    words = tokenizer()
    tokenizer_2, text_encoder_2 = t5()
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**scheduler),
        vae=autoencoder(4),
        text_encoder=CLIPTextModel(clip_config(len(words))),
        tokenizer=words,
        text_encoder_2=text_encoder_2,
        tokenizer_2=tokenizer_2,
        transformer=FluxTransformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=WIDTH,
            pooled_projection_dim=WIDTH,
            guidance_embeds=guidance_embeds,
            axes_dims_rope=(2, 2, 4),
        ),
    )


def z_image() -> ZImagePipeline:
    words, text_encoder = qwen(layers=2, head=False)
    transformer = ZImageTransformer2DModel(
        in_channels=4,
        dim=16,
        n_layers=1,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=WIDTH,
        axes_dims=[2, 2, 4],
        axes_lens=[1024, 64, 64],
    )
    torch.nn.init.normal_(transformer.x_pad_token)
    torch.nn.init.normal_(transformer.cap_pad_token)
    return ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=autoencoder(4),
        text_encoder=text_encoder,
        tokenizer=words,
        transformer=transformer,
    )


def sana_sprint() -> SanaSprintPipeline:
    words, text_encoder = gemma("\n".join(INSTRUCTION))
    return SanaSprintPipeline(
        tokenizer=words,
        text_encoder=text_encoder,
        vae=AutoencoderDC(
            latent_channels=4,
            attention_head_dim=4,
            encoder_block_types="ResBlock",
            decoder_block_types="ResBlock",
            encoder_block_out_channels=(4, 4, 4),
            decoder_block_out_channels=(4, 4, 4),
            encoder_layers_per_block=(1, 1, 1),
            decoder_layers_per_block=(1, 1, 1),
            encoder_qkv_multiscales=((), (), ()),
            decoder_qkv_multiscales=((), (), ()),
            scaling_factor=0.41,
        ),
        transformer=SanaTransformer2DModel(
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=8,
            num_layers=1,
            num_cross_attention_heads=2,
            cross_attention_head_dim=8,
            cross_attention_dim=16,
            caption_channels=WIDTH,
            sample_size=8,
            guidance_embeds=True,
            qk_norm="rms_norm_across_heads",
        ),
        scheduler=SCMScheduler(),
    )


def flux2_klein(is_distilled: bool = True) -> Flux2KleinPipeline:
    words, text_encoder = qwen(layers=28, head=True)
    vae = AutoencoderKLFlux2(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=4,
    )
    torch.nn.init.normal_(vae.bn.running_mean)
    torch.nn.init.uniform_(vae.bn.running_var, 0.5, 2.0)
    return Flux2KleinPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=words,
        transformer=Flux2Transformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=3 * WIDTH,
            axes_dims_rope=(2, 2, 2, 2),
            guidance_embeds=False,
        ),
        is_distilled=is_distilled,
    )


FLOW_PIPELINES: dict[str, Callable[[], Any]] = {
    "StableDiffusion3Pipeline": stable_diffusion_3,
    "FluxPipeline": flux,
    "ZImagePipeline": z_image,
    "SanaSprintPipeline": sana_sprint,
    "Flux2KleinPipeline": flux2_klein,
}
