"""Launches that shard: torch's FSDP2 spreads the network, DeepSpeed's ZeRO-2 the gradients and the optimizer's state.

Both are asked for by accelerate's own configuration files. What a run writes is the same whatever was sharded, so it
can go on with another launch.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sdpo.backbones import Backbone
from sdpo.backbones.training import TrainableBackbone
from sdpo.config import Config
from sdpo.errors import UserError
from sdpo.finite import Watch
from sdpo.optimization import Make, Optimization
from sdpo.processes import Processes

# What `accelerate launch` sets for what its configuration asks for, and nothing here does.
_UNKNOWN = {"ACCELERATE_USE_MEGATRON_LM": "Megatron-LM", "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism_config"}


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


def requested() -> Sharding | None:
    """What the launch asks for, as accelerate's own plugins read it.

    Raises:
        UserError: if that is something that nothing here does, and would silently be left out.
    """
    for variable, name in _UNKNOWN.items():
        if _is_set(variable):
            raise UserError(
                f"accelerate's configuration asks for {name}, which sdpo does not do. It knows distributed_type "
                "MULTI_GPU, FSDP (fsdp_version 2) and DEEPSPEED (zero_stage 2): see examples/accelerate/."
            )
    if _is_set("ACCELERATE_USE_FSDP"):
        return _fsdp2()
    return _zero2() if _is_set("ACCELERATE_USE_DEEPSPEED") else None


def _is_set(variable: str) -> bool:
    return os.environ.get(variable, "false").lower() in ("true", "1")


def _fsdp2() -> FSDP2:
    if os.environ.get("FSDP_VERSION", "1") != "2":
        raise UserError("accelerate's configuration asks for FSDP 1: set fsdp_config.fsdp_version to 2")
    from accelerate.utils import FullyShardedDataParallelPlugin

    plugin = FullyShardedDataParallelPlugin()
    policy = os.environ.get("FSDP_AUTO_WRAP_POLICY", "TRANSFORMER_BASED_WRAP").upper()
    refused = {
        "fsdp_offload_params: true": _is_set("FSDP_OFFLOAD_PARAMS"),
        "fsdp_activation_checkpointing: true (use train.gradient_checkpointing=true)": plugin.activation_checkpointing,
        "fsdp_auto_wrap_policy: SIZE_BASED_WRAP": policy == "SIZE_BASED_WRAP",
    }
    for setting, asked in refused.items():
        if asked:
            raise UserError(f"accelerate's configuration has {setting}, which sdpo does not do: leave it out")
    names = plugin.transformer_cls_names_to_wrap
    blocks = () if policy == "NO_WRAP" else tuple(n.strip() for n in names) if names else None
    return FSDP2(bool(plugin.reshard_after_forward), blocks)


def _zero2() -> ZeRO2:
    try:
        import deepspeed  # noqa: F401 (it is loaded in earnest once the device is known)
        from accelerate.utils import DeepSpeedPlugin
    except ImportError as error:
        raise UserError(
            "accelerate's configuration asks for DeepSpeed: pip install 'sdpo[deepspeed]', or distributed_type FSDP, "
            "which needs nothing more"
        ) from error
    settings = DeepSpeedPlugin().deepspeed_config["zero_optimization"]
    offloads = [
        n for n in ("offload_optimizer", "offload_param") if settings.get(n, {}).get("device") not in (None, "none")
    ]
    if settings.get("stage") != 2 or offloads:
        found = f"stage {settings.get('stage')}" + (f" with {' and '.join(offloads)}" if offloads else "")
        raise UserError(
            f"accelerate's configuration asks for DeepSpeed's {found}. sdpo does stage 2 without offloading; to spread "
            "the weights themselves use distributed_type FSDP, see examples/accelerate/fsdp2.yaml."
        )
    known = {n: v for n, v in settings.items() if v != "auto" and not n.startswith(("offload_", "stage3_"))}
    return ZeRO2(known)


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


def shard(backbone: TrainableBackbone, sharding: Sharding | None, device: torch.device, processes: int) -> None:
    """Spread the backbone's network, if that is what the launch asks for."""
    if isinstance(sharding, FSDP2):
        from torch.distributed.device_mesh import init_device_mesh  # torch has it on some platforms only

        mesh = init_device_mesh(device.type, (processes,))
        backbone.shard(mesh, device, sharding.blocks, sharding.reshard_after_forward)


def make_optimization(
    sharding: Sharding | None,
    backbone: Backbone,
    processes: Processes,
    parameters: Mapping[str, nn.Parameter],
    make: Make,
    **options: Any,
) -> Optimization:
    """The optimizer's side of the update that fits how the trained weights lie; options are those of `Optimization`."""
    if isinstance(sharding, ZeRO2):
        return ZeROOptimization(sharding.settings, parameters, make, **options)
    network = backbone.network_module
    if backbone.is_sharded and len(parameters) == len(list(network.parameters())):  # a LoRA's weights are whole
        return ShardedOptimization(network, processes.count, processes.is_main, parameters, make, **options)
    return Optimization(parameters, make, **options)


class ShardedOptimization(Optimization):
    """Of weights that FSDP2 has spread: each process steps its part of every one.

    The optimizer is given plain tensors, the parts; the gradients that FSDP2 has averaged are handed to them.

    Args:
        network: whose weights they are.
        processes: how many.
        main: whether this process keeps what is gathered, to write it.
        parameters: see `Optimization`, as the rest.
        make: see there.
        options: see there.
    """

    collective = True

    def __init__(
        self,
        network: nn.Module,
        processes: int,
        main: bool,
        parameters: Mapping[str, nn.Parameter],
        make: Make,
        **options: Any,
    ) -> None:
        from sdpo.backbones import sharded  # torch has it on some platforms only

        self._sharded = sharded
        self.network = network
        self.processes = processes
        self.main = main
        super().__init__(parameters, make, **options)

    def backward(self, loss: Tensor, last: bool) -> None:
        """See `Optimization.backward`; gradients are averaged while they come."""
        del last
        _spoiled(loss).backward()  # type: ignore[no-untyped-call]

    def step(self, watch: Watch) -> Tensor:
        """See `Optimization.step`."""
        for parameter, tensor in zip(self.parameters, self.tensors, strict=True):
            if parameter.grad is not None:
                tensor.grad = parameter.grad.to_local()  # type: ignore[attr-defined]
                parameter.grad = None
        return super().step(watch)

    def _reduce(self, gradients: list[Tensor], watch: Watch) -> Tensor:
        squares = torch.stack(torch._foreach_norm(gradients)).square()
        return (self.all_reduce(squares) * self.processes).sqrt()

    def _tensors(self) -> list[nn.Parameter]:
        return [nn.Parameter(self._sharded.local(p).detach()) for p in self.parameters]

    def _whole(self, tensors: list[Any]) -> dict[str, Tensor]:
        found = {}
        for name, parameter, tensor in zip(self.names, self.parameters, tensors, strict=True):
            whole = self._sharded.gathered(tensor.detach(), parameter)
            if self.main:
                found[name] = whole.cpu()
        return found

    def _put(self, whole: Mapping[str, Tensor], tensors: list[Any]) -> None:
        for name, parameter, tensor in zip(self.names, self.parameters, tensors, strict=True):
            tensor.copy_(self._sharded.part_of(whole[name], parameter))

    def _optimizer_state(self) -> dict[str, Any]:
        state = self.optimizer.state_dict()
        return {**state, "state": self._each(state["state"], lambda part, p: self._sharded.gathered(part, p).cpu())}

    def _load_optimizer_state(self, state: dict[str, Any]) -> None:
        super()._load_optimizer_state({**state, "state": self._each(state["state"], self._sharded.part_of)})

    def _each(self, state: dict[int, Any], change: Callable[[Tensor, nn.Parameter], Tensor]) -> dict[int, Any]:
        """The state of an optimizer with its moments changed; the count of steps is no moment."""
        return {
            i: {k: change(v, self.parameters[i]) if v.ndim else v for k, v in entry.items()}
            for i, entry in state.items()
        }

    def changed(self) -> None:
        """See `Optimization.changed`."""
        self._sharded.forget_gathered(self.network)


class ZeROOptimization(Optimization):
    """DeepSpeed's ZeRO-2 (Rajbhandari et al. 2020, arXiv 1910.02054): gradients and moments are split, weights are not.

    DeepSpeed's engine owns the trained weights alone. It averages and splits gradients while they come, clips, steps,
    and leaves out a step whose gradients are not finite.

    Args:
        settings: DeepSpeed's section `zero_optimization`.
        parameters: see `Optimization`, as the rest.
        make: see there.
        options: see there.
    """

    collective = True
    _MOMENTS = ("exp_avg", "exp_avg_sq")

    def __init__(
        self, settings: Mapping[str, Any], parameters: Mapping[str, nn.Parameter], make: Make, **options: Any
    ) -> None:
        for parameter in parameters.values():
            # DeepSpeed lays them out in one buffer; `contiguous()` would leave kernels of 1 × 1 in channels-last order.
            parameter.data = parameter.data.clone(memory_format=torch.contiguous_format)
        super().__init__(parameters, make, **options)
        if self.tensors[0].device.type == "cpu":
            os.environ.setdefault("DS_ACCELERATOR", "cpu")  # it would take a GPU of this machine
        import deepspeed

        self._utils = deepspeed.utils
        config = {
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 1,  # counted by `backward`
            "gradient_clipping": self.max_grad_norm,
            "zero_optimization": dict(settings),
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
        }
        self.engine, *_ = deepspeed.initialize(
            model=nn.ParameterList(self.parameters), optimizer=self.optimizer, config=config, dist_init_required=False
        )

    def backward(self, loss: Tensor, last: bool) -> None:
        """See `Optimization.backward`."""
        self.engine.set_gradient_accumulation_boundary(last)
        self.engine.backward(_spoiled(loss), scale_wrt_gas=False)

    def step(self, watch: Watch) -> Tensor:
        """See `Optimization.step`."""
        self.engine.step()
        norm = torch.as_tensor(float(self.engine.get_global_grad_norm()), device=self.tensors[0].device)
        watch.end_step(norm[None], ["one of the trained weights"])  # DeepSpeed does not say which
        self._advance()
        return norm

    @torch.no_grad()
    def take(self, weights: Mapping[str, Tensor], average: Mapping[str, Tensor]) -> None:
        """See `Optimization.take`; each process steps a copy of its share."""
        super().take(weights, average)
        for parameter in self.parameters:
            self._utils.safe_set_full_fp32_param(parameter, parameter.detach())

    def _optimizer_state(self) -> dict[str, Any]:
        found = next(iter(self.optimizer.state.values()), None)
        state = {}
        for i, parameter in enumerate(self.parameters if found is not None else []):
            moments = {k: self._utils.safe_get_full_optimizer_state(parameter, k).cpu() for k in self._MOMENTS}
            state[i] = {"step": found["step"].clone(), **moments}  # type: ignore[index]
        (group,) = self.optimizer.state_dict()["param_groups"]
        return {"state": state, "param_groups": [{**group, "params": list(range(len(self.parameters)))}]}

    def _load_optimizer_state(self, state: dict[str, Any]) -> None:
        (group,), (stored,) = self.optimizer.param_groups, state["param_groups"]
        if state["state"]:
            # DeepSpeed makes its moments in the first step; one that changes nothing.
            group["lr"] = 0.0
            self.backward(torch.stack([0 * p.sum() for p in self.parameters]).sum(), last=True)
            self.engine.step()
            for i, parameter in enumerate(self.parameters):
                for moment in self._MOMENTS:
                    value = state["state"][i][moment].to(parameter.device)
                    self._utils.safe_set_full_optimizer_state(parameter, value, moment)
            for own in self.optimizer.state.values():
                own["step"].copy_(state["state"][0]["step"])
        group.update({k: v for k, v in stored.items() if k != "params"})


def _spoiled(loss: Tensor) -> Tensor:
    """The loss; where it is not finite its gradients are not either, which averaging tells all processes."""
    return loss * torch.where(loss.detach().isfinite(), 1.0, torch.nan)
