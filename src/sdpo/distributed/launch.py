"""Launches that shard: torch's FSDP2 spreads the network, DeepSpeed's ZeRO-2 the gradients and the optimizer's state.

Both are asked for by accelerate's own configuration files. What a run writes is the same whatever was sharded, so it
can go on with another launch.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from sdpo.backbones import Backbone
from sdpo.backbones.training import TrainableBackbone
from sdpo.config.schema import Config
from sdpo.distributed.processes import DEEPSPEED, FSDP, MEGATRON, PARALLELISM, Processes, is_set
from sdpo.errors import UserError
from sdpo.loop.optimizer import Make, Optimization


@dataclass(frozen=True)
class FSDP2:
    """The network's weights are spread over processes.

    Attributes:
        reshard_after_forward: see `sharded.spread`.
        blocks: names of the classes that become units; None leaves it to the model.
    """

    reshard_after_forward: bool = True
    blocks: tuple[str, ...] | None = None


@dataclass(frozen=True)
class ZeRO2:
    """Every process has the whole network, and steps its share of the trained weights.

    Attributes:
        settings: the section `zero_optimization` of DeepSpeed's configuration.
    """

    settings: Mapping[str, Any]


Sharding = FSDP2 | ZeRO2


def requested(device: str) -> Sharding | None:
    """What the launch asks for, as accelerate's own plugins read it.

    Args:
        device: the setting.

    Raises:
        UserError: if that is something that nothing here does, and would silently be left out.
    """
    for variable, name in (MEGATRON, PARALLELISM):
        if is_set(variable):
            raise UserError(
                f"accelerate's configuration asks for {name}, which sdpo does not do. It knows distributed_type "
                "MULTI_GPU, FSDP (fsdp_version 2) and DEEPSPEED (zero_stage 2): see examples/accelerate/."
            )
    if is_set(FSDP[0]):
        return _fsdp2()
    return _zero2(device == "cpu" or not torch.accelerator.is_available()) if is_set(DEEPSPEED[0]) else None


def _fsdp2() -> FSDP2:
    from accelerate.utils import FullyShardedDataParallelPlugin

    policy = os.environ.get("FSDP_AUTO_WRAP_POLICY", "TRANSFORMER_BASED_WRAP").upper()
    refused = {
        "fsdp_version 1: set it to 2": os.environ.get("FSDP_VERSION", "1") != "2",
        "fsdp_offload_params: true: leave it out": is_set("FSDP_OFFLOAD_PARAMS"),
        "fsdp_activation_checkpointing: true: use train.gradient_checkpointing=true": is_set(
            "FSDP_ACTIVATION_CHECKPOINTING"
        ),
        "fsdp_auto_wrap_policy: SIZE_BASED_WRAP: use TRANSFORMER_BASED_WRAP": policy == "SIZE_BASED_WRAP",
    }
    for setting, asked in refused.items():
        if asked:
            raise UserError(f"accelerate's configuration has what sdpo does not do, {setting}")
    # Every process loads the weights itself; libraries that see this would leave those of all but the first empty.
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
    try:
        plugin = FullyShardedDataParallelPlugin()
    except (ValueError, ImportError) as error:  # settings of FSDP 1 that are left, an old torch
        raise UserError(f"accelerate's configuration of FSDP: {error}") from error
    names = plugin.transformer_cls_names_to_wrap
    blocks = () if policy == "NO_WRAP" else tuple(n.strip() for n in names) if names else None
    return FSDP2(bool(plugin.reshard_after_forward), blocks)


def _zero2(cpu: bool) -> ZeRO2:
    if cpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # read when it is first imported
    try:
        import deepspeed  # noqa: F401 (to know that it is there)
        from accelerate.utils import DeepSpeedPlugin
    except ImportError as error:
        raise UserError(
            "accelerate's configuration asks for DeepSpeed: pip install 'sdpo[deepspeed]', or use distributed_type "
            "FSDP, which needs nothing more"
        ) from error
    try:
        found = DeepSpeedPlugin().deepspeed_config
    except ValueError as error:
        raise UserError(f"accelerate's configuration of DeepSpeed: {error}") from error
    zero = found["zero_optimization"]
    moved = [
        n for n in ("offload_optimizer", "offload_param") if (zero.get(n) or {}).get("device") not in (None, "none")
    ]
    refused = {
        f"zero_stage {zero.get('stage')}: it does stage 2; to spread the weights themselves use distributed_type FSDP, "
        "as examples/accelerate/fsdp2.yaml does": zero.get("stage") != 2,
        f"{' and '.join(moved)}: leave it out": bool(moved),
        "an optimizer: use train.optimizer": "optimizer" in found,
        "a scheduler: use train.lr_schedule": "scheduler" in found,
        "gradient_clipping: use train.max_grad_norm": found.get("gradient_clipping", "auto") not in ("auto", 0.0),
        "another precision: use model.dtype": any(
            (found.get(n) or {}).get("enabled") is True for n in ("fp16", "bf16", "amp", "torch_autocast")
        ),
    }
    for setting, asked in refused.items():
        if asked:
            raise UserError(f"accelerate's configuration of DeepSpeed has what sdpo does not do, {setting}")
    known = {n: v for n, v in zero.items() if v != "auto" and not n.startswith(("offload_", "stage3_"))}
    return ZeRO2(known | {"compute_grad_norm": True})  # which says whether a step was left out


def check(sharding: Sharding, config: Config, device: torch.device) -> None:
    """Refuse settings that a sharded run cannot have.

    Raises:
        UserError: saying which, and why.
    """
    whole_model = config.lora is None
    name = "FSDP2" if isinstance(sharding, FSDP2) else "DeepSpeed"
    splits_optimizer = whole_model or isinstance(sharding, ZeRO2)
    refused = {
        "model.dtype=float16: its loss scaling is not shared; use bfloat16": config.model.dtype == "float16",
        f"model.compile=true: compiled blocks were not tried under {name}": config.model.compile,
        "train.optimizer=adamw8bit: its state cannot be split": splits_optimizer
        and config.train.optimizer == "adamw8bit",
        "model.quantize: quantised weights cannot be split": isinstance(sharding, FSDP2)
        and config.model.quantize is not None,
    }
    for reason, given in refused.items():
        if given:
            raise UserError(f"accelerate's configuration asks for {name}, which does not go with {reason}")
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"accelerate's configuration asks for {name}, which needs GPUs of NVIDIA or AMD, or CPUs")


def shard(
    backbone: TrainableBackbone, sharding: Sharding | None, device: torch.device, dtype: torch.dtype, processes: int
) -> None:
    """Spread the backbone's network, if that is what the launch asks for.

    Raises:
        UserError: if no block of the network has a name that the launch gives.
    """
    if isinstance(sharding, FSDP2):
        from torch.distributed.device_mesh import init_device_mesh  # torch has it on some platforms only

        from sdpo.distributed.fsdp2 import Spread

        mesh = init_device_mesh(device.type, (processes,))
        Spread(backbone, mesh, device, dtype, sharding.blocks, sharding.reshard_after_forward)


def make_optimization(
    sharding: Sharding | None,
    backbone: Backbone,
    processes: Processes,
    parameters: Mapping[str, nn.Parameter],
    make: Make,
    **options: Any,
) -> Optimization:
    """The optimizer's side of the update that fits how the trained weights lie; options are those of `Optimization`."""
    if sharding is None:
        return Optimization(parameters, make, **options)
    from sdpo.distributed.fsdp2_optimizer import (  # torch has it on some platforms only
        ShardedOptimization,
        ZeROOptimization,
    )

    if isinstance(sharding, ZeRO2):
        return ZeROOptimization(sharding.settings, processes.is_main, parameters, make, **options)
    network = backbone.network_module
    if len(parameters) < len(list(network.parameters())):  # a LoRA's, which are whole on every process
        return Optimization(parameters, make, **options)
    return ShardedOptimization(network, processes.count, processes.is_main, parameters, make, **options)
