"""The sharding that `accelerate launch` asks for: read from its environment variables, and checked.

torch's FSDP2 shards the network, DeepSpeed's ZeRO-2 the gradients and the optimizer's state. What a run writes does not
depend on the sharding, so that a run can be resumed by another kind of launch. This module imports no model.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from sdpo.config.schema import Config
from sdpo.errors import UserError

_FSDP = "ACCELERATE_USE_FSDP"
_DEEPSPEED = "ACCELERATE_USE_DEEPSPEED"
_NEVER_SUPPORTED = {
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism_config",
}
_EVERY_SHARDING = {_FSDP: "FSDP", _DEEPSPEED: "DeepSpeed", **_NEVER_SUPPORTED}
"""Environment variables that `accelerate launch` sets for the sharding in its configuration, and names for messages."""


@dataclass(frozen=True)
class FSDP2:
    """The network's weights are sharded over ranks.

    Attributes:
        reshard_after_forward: whether a block's gathered weights are freed after its forward pass; otherwise they stay
            until its backward pass.
        blocks: class names of the modules that are sharded as one unit each; None stands for the model's own blocks.
        name: name for messages.
        shards_weights: whether the network's weights are sharded. Such a network is loaded into main memory.
    """

    reshard_after_forward: bool = True
    blocks: tuple[str, ...] | None = None
    name: ClassVar[str] = "FSDP2"
    shards_weights: ClassVar[bool] = True


@dataclass(frozen=True)
class ZeRO2:
    """Gradients and the optimizer's state are sharded over ranks; every rank has the whole network.

    Attributes:
        settings: the section `zero_optimization` of DeepSpeed's configuration.
        name: name for messages.
        shards_weights: whether the network's weights are sharded.
    """

    settings: Mapping[str, Any]
    name: ClassVar[str] = "DeepSpeed"
    shards_weights: ClassVar[bool] = False


Sharding = FSDP2 | ZeRO2


def requested(device: str) -> Sharding | None:
    """The sharding that the launch asks for, read by accelerate's own plugins; None where it asks for none.

    Args:
        device: `device` of the config; with `cpu`, DeepSpeed is imported for CPUs.

    Raises:
        UserError: if the launch asks for something that sdpo does not support.
    """
    for variable, name in _NEVER_SUPPORTED.items():
        if _is_set(variable):
            raise UserError(
                f"accelerate's configuration asks for {name}, which sdpo does not support. Use distributed_type "
                "MULTI_GPU, FSDP (fsdp_version 2) or DEEPSPEED (zero_stage 2), as examples/accelerate/ does."
            )
    if _is_set(_FSDP):
        return _fsdp2()
    return _zero2(device == "cpu" or not torch.accelerator.is_available()) if _is_set(_DEEPSPEED) else None


def check_unsharded() -> None:
    """Refuse a launch that asks for sharding, for commands that cannot shard.

    Raises:
        UserError: if accelerate's configuration asks for any kind of sharding.
    """
    for variable, name in _EVERY_SHARDING.items():
        if _is_set(variable):
            raise UserError(
                f"accelerate's configuration asks for {name}, which shards a model over the processes; of sdpo only "
                "`train` does that. Launch this command with distributed_type MULTI_GPU, as examples/accelerate/ does."
            )


def check(sharding: Sharding, config: Config, device: torch.device) -> None:
    """Refuse settings that cannot be combined with sharding.

    Raises:
        UserError: if a setting cannot be combined with the sharding, or the device cannot shard.
    """
    splits_optimizer = config.lora is None or not sharding.shards_weights
    refused = {
        "model.dtype=float16, because its loss scaling is not shared: use bfloat16": config.model.dtype == "float16",
        f"model.compile=true: compiled blocks have not been tried under {sharding.name}": config.model.compile,
        "train.optimizer=adamw8bit, whose state cannot be split: use adamw": splits_optimizer
        and config.train.optimizer == "adamw8bit",
        "model.quantize, because quantised weights cannot be split": sharding.shards_weights
        and config.model.quantize is not None,
    }
    for setting, given in refused.items():
        if given:
            raise UserError(
                f"accelerate's configuration asks for {sharding.name}, which cannot be combined with {setting}"
            )
    if device.type not in ("cpu", "cuda"):
        raise UserError(
            f"accelerate's configuration asks for {sharding.name}, which needs NVIDIA or AMD GPUs, or CPUs; the device "
            f"is {device.type}"
        )


@contextlib.contextmanager
def loading_everywhere() -> Iterator[None]:
    """A context for loading weights, in which every rank loads all of them itself.

    accelerate can set `FSDP_CPU_RAM_EFFICIENT_LOADING`, with which transformers would leave the weights empty on all
    ranks but the first. Everything that loads a model under FSDP belongs in this context: pipelines and rewards.
    """
    with _environment(FSDP_CPU_RAM_EFFICIENT_LOADING="false"):
        yield


def _fsdp2() -> FSDP2:
    from accelerate.utils import FullyShardedDataParallelPlugin

    policy = os.environ.get("FSDP_AUTO_WRAP_POLICY", "TRANSFORMER_BASED_WRAP").upper()
    _refuse(
        {
            "fsdp_version 1: set it to 2": os.environ.get("FSDP_VERSION", "1") != "2",
            "fsdp_offload_params: true: leave it out": _is_set("FSDP_OFFLOAD_PARAMS"),
            "fsdp_activation_checkpointing: true: use train.gradient_checkpointing=true": _is_set(
                "FSDP_ACTIVATION_CHECKPOINTING"
            ),
            "fsdp_auto_wrap_policy: SIZE_BASED_WRAP: use TRANSFORMER_BASED_WRAP": policy == "SIZE_BASED_WRAP",
        }
    )
    try:
        plugin = FullyShardedDataParallelPlugin()
    except (ValueError, ImportError) as error:  # left-over settings of FSDP 1, an old torch
        raise UserError(f"accelerate's configuration of FSDP: {error}") from error
    names = plugin.transformer_cls_names_to_wrap
    blocks = () if policy == "NO_WRAP" else tuple(n.strip() for n in names) if names else None
    return FSDP2(bool(plugin.reshard_after_forward), blocks)


def _zero2(on_cpu: bool) -> ZeRO2:
    _import_deepspeed(on_cpu)
    from accelerate.utils import DeepSpeedPlugin

    try:
        found = DeepSpeedPlugin().deepspeed_config
    except ValueError as error:
        raise UserError(f"accelerate's configuration of DeepSpeed: {error}") from error
    zero = found["zero_optimization"]
    offloaded = [
        n for n in ("offload_optimizer", "offload_param") if (zero.get(n) or {}).get("device") not in (None, "none")
    ]
    _refuse(
        {
            f"zero_stage {zero.get('stage')}: set it to 2, or shard the weights too with distributed_type FSDP, as "
            "examples/accelerate/fsdp2.yaml does": zero.get("stage") != 2,
            f"{' and '.join(offloaded)}: leave it out": bool(offloaded),
            "optimizer of DeepSpeed's file: use train.optimizer": "optimizer" in found,
            "scheduler of DeepSpeed's file: use train.lr_schedule": "scheduler" in found,
            "gradient_clipping: use train.max_grad_norm": found.get("gradient_clipping", "auto") not in ("auto", 0.0),
            "the precision in DeepSpeed's file: use model.dtype": any(
                (found.get(n) or {}).get("enabled") is True for n in ("fp16", "bf16", "amp", "torch_autocast")
            ),
        }
    )
    known = {n: v for n, v in zero.items() if v != "auto" and not n.startswith(("offload_", "stage3_"))}
    return ZeRO2(known | {"compute_grad_norm": True})  # the norm tells whether a step was skipped


def _import_deepspeed(on_cpu: bool) -> None:
    """Import DeepSpeed for the first time, for CPUs where `on_cpu` says so and the user names no accelerator."""
    names_none = "DS_ACCELERATOR" not in os.environ
    try:
        with _environment(DS_ACCELERATOR="cpu") if on_cpu and names_none else contextlib.nullcontext():
            from deepspeed.accelerator import get_accelerator

            get_accelerator()  # reads the variable, once
    except ImportError as error:
        raise UserError(
            "accelerate's configuration asks for DeepSpeed: pip install 'sdpo[deepspeed]', or use distributed_type "
            "FSDP, which needs no other package"
        ) from error


def _refuse(settings: Mapping[str, bool]) -> None:
    """Raise for the first of accelerate's settings that is given, each with the fix to it."""
    for setting, given in settings.items():
        if given:
            raise UserError(f"sdpo does not support this setting of accelerate's configuration: {setting}")


def _is_set(variable: str) -> bool:
    """Whether an environment variable says yes, in one of the ways in which accelerate writes that."""
    return os.environ.get(variable, "false").lower() in ("true", "1")


@contextlib.contextmanager
def _environment(**variables: str) -> Iterator[None]:
    """A context in which environment variables have the given values."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
