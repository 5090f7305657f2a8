"""The contents of an export's folder, as far as the model card describes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_DIFFUSERS_LORA = "pytorch_lora_weights.safetensors"


@dataclass(frozen=True)
class Exported:
    """The contents of the folder that the card is written into.

    Attributes:
        name: the card's title.
        address: what `from_pretrained` or `load_lora_weights` is called with: a hub name or a path.
        weight_name: the LoRA's file; None if the folder holds a whole pipeline.
        weights: which weights of the run were exported, in words.
        as_evaluated: whether the run's evaluations used weights of this kind (averaged or not).
        epoch: the epoch after which the weights were taken.
        prompt: the prompt of the example.
        steps: number of sampling steps in the example.
        sampler: class name of the pipeline's scheduler.
        guidance_scale: the guidance scale, where 1 is none.
        arguments: arguments of the pipeline's call besides prompt, number of steps and generator; with the `height`
            and `width` of images in pixels.
        images: prompt and file of each image in the folder that the hub's page shows.
        dtype: data type of merged weights; None where nothing was merged or converted.
        rounding: the relative L2 distance between the merged weights' change and the LoRA's; None where no LoRA was
            merged.
        for_webui: whether AUTOMATIC1111 or Forge reads the LoRA's file.
        workflow: the file of a ComfyUI workflow, or None.
    """

    name: str
    address: str
    weight_name: str | None
    weights: str
    as_evaluated: bool
    epoch: int
    prompt: str
    steps: int
    sampler: str
    guidance_scale: float
    arguments: Mapping[str, Any]
    images: Sequence[tuple[str, str]] = ()
    dtype: str | None = None
    rounding: float | None = None
    for_webui: bool = False
    workflow: str | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of images in pixels."""
        return self.arguments["height"], self.arguments["width"]

    @property
    def for_comfyui(self) -> bool:
        """Whether the folder holds a LoRA in ComfyUI's format."""
        return self.weight_name not in (None, _DIFFUSERS_LORA)
