"""The names by which other programs know a base model: ModelSpec's, those of sd-scripts, and AUTOMATIC1111's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ModelFamily:
    """A family of base models, whose LoRAs fit each other.

    Attributes:
        architecture: the architecture's id in ModelSpec (github.com/Stability-AI/ModelSpec), without the suffix of an
            adapter. Families that the specification does not list have the ids that sd-scripts, musubi-tuner and
            SwarmUI use.
        implementation: the name or address of the code that defines the architecture.
        base_version: the base model's name in the metadata `ss_base_model_version` of sd-scripts and ai-toolkit.
        webui: the name in the list of versions of AUTOMATIC1111's and Forge's web pages; `Unknown` where they list
            none.
    """

    architecture: str
    implementation: str
    base_version: str
    webui: str = "Unknown"


_FLUX = "https://github.com/black-forest-labs/flux"
_SD3 = "https://github.com/Stability-AI/sd3.5"


def model_family(pipeline: Any) -> ModelFamily:
    """The family of a diffusers pipeline of a supported class, by its class and its network's config."""
    return _FAMILIES[type(pipeline).__name__](pipeline)


def _stable_diffusion(pipeline: Any) -> ModelFamily:
    """SD 2 has a text encoder of width 1024; its 768-pixel models predict v, SD 2.1 base and SD-Turbo the noise."""
    if pipeline.unet.config.cross_attention_dim != 1024:
        return ModelFamily("stable-diffusion-v1", "diffusers", "sd_v1", "SD1")
    if pipeline.scheduler.config.get("prediction_type") == "v_prediction":
        return ModelFamily("stable-diffusion-v2-768-v", "diffusers", "sd_v2_v", "SD2")
    return ModelFamily("stable-diffusion-v2-512", "diffusers", "sd_v2", "SD2")


def _stable_diffusion_xl(_: Any) -> ModelFamily:
    repository = "https://github.com/Stability-AI/generative-models"
    return ModelFamily("stable-diffusion-xl-v1-base", repository, "sdxl_base_v1-0", "SDXL")


def _stable_diffusion_3(pipeline: Any) -> ModelFamily:
    """SD 3 has no normalisation of queries and keys; SD 3.5 medium has blocks with two attention layers."""
    config = pipeline.transformer.config
    if config.qk_norm is None:
        return ModelFamily("stable-diffusion-v3-medium", _SD3, "sd3_medium")
    size = "medium" if config.dual_attention_layers else "large"
    return ModelFamily(f"stable-diffusion-v3.5-{size}", _SD3, f"sd3.5_{size}")


def _flux(pipeline: Any) -> ModelFamily:
    kind = "dev" if pipeline.transformer.config.guidance_embeds else "schnell"
    return ModelFamily(f"flux-1-{kind}", _FLUX, "flux1", "Flux")


def _flux2_klein(pipeline: Any) -> ModelFamily:
    size = "9b" if _width(pipeline) > 3072 else "4b"
    return ModelFamily(f"Flux.2-klein-{size}", f"{_FLUX}2", f"flux2_klein_{size}")


def _z_image(_: Any) -> ModelFamily:
    return ModelFamily("z-image", "https://github.com/Tongyi-MAI/Z-Image", "zimage")


def _sana(pipeline: Any) -> ModelFamily:
    size = 1600 if _width(pipeline) > 1152 else 600
    return ModelFamily(f"nvidia-sana-{size}", "https://github.com/NVlabs/Sana", "sana")


def _width(pipeline: Any) -> int:
    """Number of channels of a transformer's tokens."""
    config = pipeline.transformer.config
    return int(config.num_attention_heads * config.attention_head_dim)


_FAMILIES: dict[str, Callable[[Any], ModelFamily]] = {
    "StableDiffusionPipeline": _stable_diffusion,
    "LatentConsistencyModelPipeline": _stable_diffusion,
    "StableDiffusionXLPipeline": _stable_diffusion_xl,
    "StableDiffusion3Pipeline": _stable_diffusion_3,
    "FluxPipeline": _flux,
    "Flux2KleinPipeline": _flux2_klein,
    "ZImagePipeline": _z_image,
    "SanaSprintPipeline": _sana,
}
"""The family of each supported pipeline class."""
