"""The contents of an export's folder, as far as the model card describes them."""

from __future__ import annotations

from collections.abc import Mapping
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
        steps: number of sampling steps in the example.
        arguments: arguments of the pipeline's call besides prompt, number of steps and generator.
    """

    name: str
    address: str
    weight_name: str | None
    weights: str
    as_evaluated: bool
    epoch: int
    steps: int
    arguments: Mapping[str, Any]

    @property
    def for_comfyui(self) -> bool:
        """Whether the folder holds a LoRA in ComfyUI's format."""
        return self.weight_name not in (None, _DIFFUSERS_LORA)
