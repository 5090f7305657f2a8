"""The merge of a LoRA into a network's weights, with the error that their data type makes of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


def restore(network: nn.Module, component: str, adapter: str, weights: Mapping[str, Tensor]) -> None:
    """Give a network's LoRA the values of its file; loading had rounded them to the network's data type.

    Args:
        network: the network, with the LoRA of that file.
        component: the network's name in its pipeline, with which the names in the file begin.
        adapter: name of the LoRA.
        weights: contents of a file that `lora.save` wrote.
    """
    for name, parameter in network.named_parameters():
        if f".{adapter}." in name:
            parameter.data = weights[f"{component}.{name.replace(f'.{adapter}', '')}"].to(parameter.device)


@torch.no_grad()
def merge(network: nn.Module, dtype: torch.dtype) -> float:
    """Add a network's LoRA to its base weights in float32, then round them to a data type.

    bfloat16 keeps 8 significant bits: what changes a weight by less than 1/512 of it is lost, which is much of a LoRA
    after a short training.

    Args:
        network: the network, with its LoRA, which remains to be removed.
        dtype: data type of the merged weights.

    Returns:
        ‖Δ' − Δ‖ / ‖Δ‖ over all weights with a LoRA, where Δ is the LoRA's product and Δ' the difference that is left of
        it between the merged and the base weights, both in the data type; 0 where the LoRA is 0.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    error = size = 0.0
    for layer in network.modules():
        if isinstance(layer, BaseTunerLayer):
            base: Any = layer.float().get_base_layer()
            before = base.weight.clone()
            layer.merge()
            wanted = base.weight - before
            base.to(dtype)
            kept = base.weight.float() - before.to(dtype).float()
            error += (kept - wanted).double().square().sum().item()
            size += wanted.double().square().sum().item()
    return (error / size) ** 0.5 if size else 0.0
