"""The sizes of published models, and which of them a local model resembles."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class ModelSize:
    """The sizes of a model's parts, and the memory that the gradient of one sample takes.

    The two figures for activations are bytes in half precision for latents of 64 × 64; for a decoder with 32 pixels a
    latent they are for latents of 32 × 32.

    Attributes:
        network: number of parameters of the denoising network.
        linear: number of the network's parameters in linear layers, the only ones that are quantised.
        lora_per_rank: Σ (inputs + outputs) over the layers that get a LoRA; a LoRA of rank r has r times as many
            parameters.
        text_encoders: number of parameters of all text encoders.
        vae: number of parameters of the VAE.
        latent_channels: C of the latents.
        latent_scale: pixels along each side of one latent.
        image_size: default height and width in pixels.
        activations: bytes that the backward pass of one sample keeps.
        checkpointed_activations: bytes that it keeps under gradient checkpointing: the inputs of the blocks, and one
            block that is recomputed.
        scheduler: class name of the model's scheduler.
        decoder_channels: channels of the decoder at full resolution.
        embeds_guidance: whether the network takes the guidance scale as an input, so that guidance needs no second
            evaluation.
        upcasts: whether the decoder runs in float32 where the model is in float16.
    """

    network: int
    linear: int
    lora_per_rank: int
    text_encoders: int
    vae: int
    latent_channels: int
    latent_scale: int
    image_size: tuple[int, int]
    activations: float
    checkpointed_activations: float
    scheduler: str = "FlowMatchEulerDiscreteScheduler"
    decoder_channels: int = 256
    embeds_guidance: bool = False
    upcasts: bool = False


# Parameters were counted on the architectures that the config.json files on the hub describe, without weights.
# Activations are what autograd saves there for the backward pass of a LoRA, with fused attention.
_SD_TURBO = ModelSize(
    network=865_910_724,
    linear=301_219_840,
    lora_per_rank=207_488,
    text_encoders=340_387_840,
    vae=83_653_863,
    latent_channels=4,
    latent_scale=8,
    image_size=(512, 512),
    activations=0.66e9,
    checkpointed_activations=0.24e9,
    scheduler="EulerDiscreteScheduler",
)
_LCM = ModelSize(
    network=859_602_884,
    linear=270_131_200,
    lora_per_rank=199_296,
    text_encoders=123_060_480,
    vae=83_653_863,
    latent_channels=4,
    latent_scale=8,
    image_size=(768, 768),
    activations=0.71e9,
    checkpointed_activations=0.29e9,
    scheduler="LCMScheduler",
    embeds_guidance=True,
)
_SDXL = ModelSize(
    network=2_567_463_684,
    linear=2_232_647_680,
    lora_per_rank=1_451_520,
    text_encoders=817_720_320,
    vae=83_653_863,
    latent_channels=4,
    latent_scale=8,
    image_size=(512, 512),
    activations=1.21e9,
    checkpointed_activations=0.36e9,
    scheduler="EulerAncestralDiscreteScheduler",
    upcasts=True,
)
_SD35 = ModelSize(
    network=8_056_627_520,
    linear=8_053_694_464,
    lora_per_rank=1_473_792,
    text_encoders=5_580_031_000,
    vae=83_821_011,
    latent_channels=16,
    latent_scale=8,
    image_size=(1024, 1024),
    activations=4.35e9,
    checkpointed_activations=0.37e9,
)
_FLUX = ModelSize(
    network=11_891_178_560,
    linear=11_888_099_328,
    lora_per_rank=1_634_304,
    text_encoders=4_885_371_136,
    vae=83_821_011,
    latent_channels=16,
    latent_scale=8,
    image_size=(1024, 1024),
    activations=6.45e9,
    checkpointed_activations=0.60e9,
)
_Z_IMAGE = ModelSize(
    network=6_154_908_736,
    linear=6_153_863_168,
    lora_per_rank=1_044_480,
    text_encoders=4_022_468_096,
    vae=83_821_011,
    latent_channels=16,
    latent_scale=8,
    image_size=(1024, 1024),
    activations=8.29e9,
    checkpointed_activations=0.52e9,
)
_SANA = ModelSize(
    network=1_610_237_472,
    linear=854_353_920,
    lora_per_rank=716_800,
    text_encoders=2_614_341_888,
    vae=312_250_275,
    latent_channels=32,
    latent_scale=32,
    image_size=(1024, 1024),
    activations=4.24e9,
    checkpointed_activations=0.31e9,
    scheduler="SCMScheduler",
    embeds_guidance=True,
)

PUBLISHED = {
    "stabilityai/sd-turbo": _SD_TURBO,
    "stabilityai/sdxl-turbo": _SDXL,
    "stabilityai/stable-diffusion-xl-base-1.0": replace(
        _SDXL, image_size=(1024, 1024), scheduler="EulerDiscreteScheduler"
    ),
    "SimianLuo/LCM_Dreamshaper_v7": _LCM,
    "stabilityai/stable-diffusion-3.5-large-turbo": _SD35,
    "black-forest-labs/FLUX.1-schnell": _FLUX,
    "Tongyi-MAI/Z-Image-Turbo": _Z_IMAGE,
    "Efficient-Large-Model/Sana_Sprint_1.6B_1024px_diffusers": _SANA,
}
"""The published models by name on the hub."""

SIMILAR = {
    "StableDiffusionPipeline": _SD_TURBO,
    "LatentConsistencyModelPipeline": _LCM,
    "StableDiffusionXLPipeline": _SDXL,
    "StableDiffusion3Pipeline": _SD35,
    "FluxPipeline": _FLUX,
    "Flux2KleinPipeline": _FLUX,
    "ZImagePipeline": _Z_IMAGE,
    "SanaSprintPipeline": _SANA,
}
"""The published model from which the activations of a local pipeline are estimated, by pipeline class."""
