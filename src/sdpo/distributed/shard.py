"""A launch's sharding, applied: to the network's weights, and to the optimizer's side of the update."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from sdpo.backbones import Backbone
from sdpo.backbones.training import TrainableBackbone
from sdpo.distributed.launch import FSDP2, Sharding, ZeRO2
from sdpo.distributed.processes import Processes
from sdpo.loop.optimizer import Make, Optimization


def shard(
    backbone: TrainableBackbone, sharding: Sharding | None, device: torch.device, dtype: torch.dtype, processes: int
) -> None:
    """Shard the backbone's network over ranks, where the launch asks for FSDP2; otherwise do nothing.

    Args:
        backbone: ready to train, in main memory.
        sharding: what the launch asks for.
        device: this rank's device, which the network moves to.
        dtype: data type that the network computes in.
        processes: number of ranks.

    Raises:
        UserError: if the network has no module of a class that the launch names.
    """
    if isinstance(sharding, FSDP2):
        from torch.distributed.device_mesh import init_device_mesh  # torch has it on some platforms only

        from sdpo.distributed.fsdp2 import shard_network

        mesh = init_device_mesh(device.type, (processes,))
        shard_network(backbone, mesh, device, dtype, sharding.blocks, sharding.reshard_after_forward)


def make_optimization(
    sharding: Sharding | None,
    backbone: Backbone,
    processes: Processes,
    parameters: Mapping[str, nn.Parameter],
    make: Make,
    **options: Any,
) -> Optimization:
    """Build the optimizer's side of the update for the way in which trained weights and gradients are sharded.

    Args:
        sharding: what the launch asks for; None shards nothing.
        backbone: the model whose weights are trained.
        processes: this run's processes.
        parameters: the trained parameters by name.
        make: makes the optimizer and its schedule over given tensors.
        options: the keyword arguments of `Optimization`.
    """
    if sharding is None:
        return Optimization(parameters, make, **options)
    if isinstance(sharding, ZeRO2):
        from sdpo.distributed.zero2 import ZeRO2Optimization

        return ZeRO2Optimization(sharding.settings, processes.is_main, parameters, make, **options)
    network = backbone.network_module
    if len(parameters) < len(list(network.parameters())):  # a LoRA's parameters are whole on every rank
        return Optimization(parameters, make, **options)
    from sdpo.distributed.fsdp2_optimizer import FSDP2Optimization

    return FSDP2Optimization(network, processes.count, processes.is_main, parameters, make, **options)
