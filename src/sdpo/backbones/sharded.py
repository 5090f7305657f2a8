"""A network's weights spread over processes by torch's FSDP2, and what of them is at hand here."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from sdpo.errors import UserError


def spread(
    network: nn.Module,
    mesh: DeviceMesh,
    device: torch.device,
    dtype: torch.dtype,
    blocks: Collection[str],
    reshard_after_forward: bool,
) -> None:
    """Keep only this process's part of the network's weights; each unit is gathered when it is called.

    Small trained weights, those of a LoRA, stay whole on every process: beside the network they are nothing.

    Args:
        network: changed in place.
        mesh: of all processes.
        device: this process's, where the weights go.
        dtype: what weights that are all trained, in float32, are gathered and used in; frozen ones have it already.
        blocks: names of the classes whose modules are units; what is left is one more.
        reshard_after_forward: give a unit's other parts back after its forward pass; else after its backward pass.

    Raises:
        UserError: if there are names, and no module is of such a class.
    """
    units = [m for m in network.modules() if m is not network and type(m).__name__ in blocks]
    if blocks and not units:
        there = ", ".join(sorted({type(m).__name__ for m in network.modules() if any(m.children())}))
        raise UserError(
            f"accelerate's configuration wraps {', '.join(blocks)}, which the network does not have: {there}"
        )
    trained = {p for p in network.parameters() if p.requires_grad}
    whole = trained if len(trained) < len(list(network.parameters())) else set[nn.Parameter]()
    for parameter in network.parameters():
        if not parameter.is_contiguous():
            parameter.data = parameter.data.contiguous()  # channels-last weights cannot be sharded
    for parameter in whole:
        parameter.data = parameter.data.to(device)
    precision = MixedPrecisionPolicy(
        param_dtype=None if whole else dtype, reduce_dtype=None if whole else torch.float32, cast_forward_inputs=False
    )
    options: dict[str, Any] = dict(mesh=mesh, reshard_after_forward=reshard_after_forward, mp_policy=precision)
    for module in [*reversed(units), network]:  # inner ones first
        fully_shard(module, ignored_params=whole, **options)
    for buffer in network.buffers():
        buffer.data = buffer.data.to(device)


def local(parameter: nn.Parameter) -> Tensor:
    """This process's part of a parameter, which writing to changes; it may be empty."""
    assert isinstance(parameter, DTensor)
    return parameter._local_tensor  # to_local() refuses in-place changes of a leaf that requires a gradient


def gathered(part: Tensor, like: nn.Parameter) -> Tensor:
    """The whole tensor, of which every process has a part as it has one of `like`; all must ask for it."""
    assert isinstance(like, DTensor)
    placed = DTensor.from_local(
        part, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )
    return placed.full_tensor()


def part_of(whole: Tensor, like: nn.Parameter) -> Tensor:
    """This process's part of a tensor that all have whole."""
    assert isinstance(like, DTensor)
    whole = whole.to(like.device_mesh.device_type, like.dtype)
    placed = distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)
    return placed.to_local()


def forget_gathered(network: nn.Module) -> None:
    """Give back what has been gathered, so that it is gathered anew when the parts have been changed."""
    for module in network.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
