"""The settings that the authors of each family of models publish: guidance, precision and number of steps.

A configuration that leaves `sample.guidance_scale` or `model.dtype` at null gets these.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from sdpo.backbones.embedded import is_embedded

Dtype = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class FamilySettings:
    """The published settings of a family of models.

    Attributes:
        family: the family's name.
        guidance_scale: the guidance scale as the policy counts it, where 1 is none.
        dtype: the type of the weights on a GPU; on a CPU all run in float32.
        steps: the largest number of sampling steps that the authors show.
        source: where the settings are published.
        distilled: whether the files of the model tell that it was distilled to few steps. Where they do not, guidance
            is off, as few-step models want it, and other models need a setting.
    """

    family: str
    guidance_scale: float
    dtype: Dtype
    steps: int
    source: str
    distilled: bool = True


_EMBEDDED = FamilySettings("the embedded model", 1.0, "float32", 8, "docs/log.md")
_LCM = FamilySettings("LCM", 8.0, "float32", 8, "model card of SimianLuo/LCM_Dreamshaper_v7")
_SD = FamilySettings("Stable Diffusion", 1.0, "float16", 8, "model card of stabilityai/sd-turbo", distilled=False)
_SDXL = FamilySettings("Stable Diffusion XL", 1.0, "float16", 8, "model card of stabilityai/sdxl-turbo", False)
_SD3 = FamilySettings(
    "Stable Diffusion 3", 1.0, "bfloat16", 8, "model card of stabilityai/stable-diffusion-3.5-large-turbo", False
)
_FLUX_SCHNELL = FamilySettings("FLUX.1-schnell", 1.0, "bfloat16", 4, "model card of black-forest-labs/FLUX.1-schnell")
_FLUX_DEV = FamilySettings("FLUX.1-dev", 3.5, "bfloat16", 50, "model card of black-forest-labs/FLUX.1-dev")
_KLEIN = FamilySettings("FLUX.2-klein", 1.0, "bfloat16", 4, "model card of black-forest-labs/FLUX.2-klein-4B")
_KLEIN_BASE = FamilySettings(
    "FLUX.2-klein base", 4.0, "bfloat16", 50, "model card of black-forest-labs/FLUX.2-klein-base-4B"
)
_Z_IMAGE = FamilySettings("Z-Image-Turbo", 1.0, "bfloat16", 9, "model card of Tongyi-MAI/Z-Image-Turbo")
_SANA = FamilySettings(
    "SANA-Sprint", 4.5, "bfloat16", 4, "model card of Efficient-Large-Model/Sana_Sprint_1.6B_1024px_diffusers"
)

BY_CLASS: dict[str, FamilySettings] = {
    "StableDiffusionPipeline": _SD,
    "LatentConsistencyModelPipeline": _LCM,
    "StableDiffusionXLPipeline": _SDXL,
    "StableDiffusion3Pipeline": _SD3,
    "FluxPipeline": _FLUX_SCHNELL,
    "Flux2KleinPipeline": _KLEIN,
    "ZImagePipeline": _Z_IMAGE,
    "SanaSprintPipeline": _SANA,
}
"""The settings of each pipeline class; those of one class have one type of weights."""


def family_settings(pipeline: Any) -> FamilySettings:
    """The published settings of a pipeline of a supported class.

    Args:
        pipeline: a diffusers pipeline.
    """
    name = type(pipeline).__name__
    if is_embedded(str(getattr(pipeline, "name_or_path", ""))):
        return _EMBEDDED
    if name == "FluxPipeline" and pipeline.transformer.config.guidance_embeds:
        return _FLUX_DEV
    if name == "Flux2KleinPipeline" and not pipeline.config.is_distilled:
        return _KLEIN_BASE
    if name == "StableDiffusionPipeline" and pipeline.unet.config.time_cond_proj_dim is not None:
        return _LCM  # an LCM in the plain pipeline
    return BY_CLASS[name]


def family_dtype(class_name: str, embedded: bool) -> Dtype:
    """The type in which the weights of a family run on a GPU.

    Args:
        class_name: the name of a supported pipeline class.
        embedded: whether the model is one that comes with the package.
    """
    return _EMBEDDED.dtype if embedded else BY_CLASS[class_name].dtype
