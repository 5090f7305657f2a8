"""The merge of a LoRA into the weights of its network, and the measure of what rounding takes from it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sdpo.backbones.lora import ADAPTER


@torch.no_grad()
def merge_rounded(network: nn.Module, weights: Mapping[str, Tensor], dtype: torch.dtype) -> float:
    """Add a network's LoRA to its weights in float32, and round each sum once to the data type of the result.

    Args:
        network: the network with its LoRA, whose weights change; the LoRA's layers stay and are to be removed.
        weights: the LoRA as it was trained, float32: `<module>.lora_A.weight` and `<module>.lora_B.weight`. A loaded
            LoRA can have been rounded to the data type of the network.
        dtype: data type of the merged weights.

    Returns:
        ‖Δ′ − Δ‖ / ‖Δ‖ over all layers with a LoRA (relative L2 distance), where Δ = (α/r) · B · A, and Δ′ is the
        difference between the merged and the base weights, both in `dtype`. 0 for a LoRA without effect.
    """
    lost = total = 0.0
    for name, module in network.named_modules():
        if ADAPTER not in getattr(module, "lora_A", {}):
            continue
        delta = _delta(module, weights[f"{name}.lora_A.weight"], weights[f"{name}.lora_B.weight"])
        layer = module.get_base_layer()
        base = layer.weight.data.float()
        merged = (base + delta).to(dtype)
        lost += (merged.float() - base.to(dtype).float() - delta).square().sum().item()
        total += delta.square().sum().item()
        layer.weight.data = merged
    return math.sqrt(lost / total) if total else 0.0


def _delta(module: Any, down: Tensor, up: Tensor) -> Tensor:
    """The change (α/r) · B · A that a LoRA makes to the weight of its layer, float32, in the weight's shape."""
    for matrix, value in ((module.lora_A, down), (module.lora_B, up)):
        matrix[ADAPTER].weight.data = value.float()
    change: Tensor = module.get_delta_weight(ADAPTER)
    return change
