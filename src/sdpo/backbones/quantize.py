"""Quantisation of frozen weights to 8 or 4 bits, in the linear layers of a network's blocks."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import nn

from sdpo.errors import UserError

How = Literal["int8", "nf4"]


def quantize(network: nn.Module, how: How, device: torch.device) -> None:
    """Quantise a network's frozen weights in place; a LoRA can be added afterwards.

    Layers outside the repeated blocks, such as the timestep embedding, keep their precision: they are small, and some
    networks read their own precision from them.

    Args:
        network: the network; on the CPU, no more than one layer is on the device before it is quantised.
        how: `int8` stores one byte a weight and one scale a row (torchao); `nf4` stores half a byte a weight and one
            scale for 64 weights (bitsandbytes; Dettmers et al. 2023, arXiv 2305.14314).
        device: the device that the network will compute on, to which quantised layers are moved.

    Raises:
        UserError: if the library that `how` needs is not installed.
    """
    if how == "int8":
        try:
            from torchao.quantization import Int8WeightOnlyConfig, quantize_
        except ImportError as error:
            raise UserError("model.quantize=int8 needs torchao: pip install 'sdpo[torchao]'") from error
        quantize_(network, Int8WeightOnlyConfig(), filter_fn=_in_block, device=device)
        return
    try:
        import bitsandbytes
    except ImportError as error:
        raise UserError("model.quantize=nf4 needs bitsandbytes: pip install 'sdpo[bitsandbytes]'") from error
    for name, module in list(network.named_modules()):
        if _in_block(module, name):
            parent, _, own = name.rpartition(".")
            setattr(network.get_submodule(parent), own, _nf4(module, bitsandbytes, device))


def _in_block(module: nn.Module, name: str) -> bool:
    return isinstance(module, nn.Linear) and any(part.isdigit() for part in name.split("."))


def _nf4(layer: Any, bitsandbytes: Any, device: torch.device) -> nn.Module:
    """Quantise a linear layer to 4 bits; it computes in its former precision."""
    weight, bias = layer.weight, layer.bias
    made = bitsandbytes.nn.Linear4bit(
        layer.in_features, layer.out_features, bias is not None, compute_dtype=weight.dtype, quant_type="nf4"
    )
    made.weight = bitsandbytes.nn.Params4bit(weight.data.cpu(), requires_grad=False, quant_type="nf4")
    made.bias = bias
    moved: nn.Module = made.to(device)  # moving the layer to its device quantises it
    return moved
