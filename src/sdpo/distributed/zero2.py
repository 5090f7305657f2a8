"""The optimizer's side of the update where DeepSpeed's ZeRO-2 shards gradients and moments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sdpo.distributed.sharded_optimizer import ShardedOptimization
from sdpo.loop.divergence import FiniteWatch
from sdpo.loop.optimizer import Make


class ZeRO2Optimization(ShardedOptimization):
    """DeepSpeed's ZeRO-2 (Rajbhandari et al. 2020, arXiv 1910.02054): gradients and moments are sharded, weights not.

    DeepSpeed's engine gets the trained weights alone. It averages and shards gradients during the backward pass, clips,
    steps, and skips a step whose gradients are not finite.

    Args:
        settings: the section `zero_optimization` of DeepSpeed's configuration.
        main: whether this process is the main one, which keeps gathered tensors.
        parameters: the trained parameters by name.
        make: makes the optimizer and its schedule over given tensors.
        options: the keyword arguments of `Optimization`.
    """

    _MOMENTS = ("exp_avg", "exp_avg_sq")

    def __init__(
        self,
        settings: Mapping[str, Any],
        main: bool,
        parameters: Mapping[str, nn.Parameter],
        make: Make,
        **options: Any,
    ) -> None:
        for parameter in parameters.values():
            # DeepSpeed joins them in one buffer; `contiguous()` would leave 1 × 1 kernels in channels-last order.
            parameter.data = parameter.data.clone(memory_format=torch.contiguous_format)
        super().__init__(main, parameters, make, **options)
        import deepspeed

        self._utils = deepspeed.utils
        config = {
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 1,  # `backward` counts the calls itself
            "gradient_clipping": self.max_grad_norm,
            "zero_optimization": dict(settings),
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
        }
        self.engine, *_ = deepspeed.initialize(
            model=nn.ParameterList(self.parameters), optimizer=self.optimizer, config=config, dist_init_required=False
        )

    def backward(self, loss: Tensor, watch: FiniteWatch, last: bool) -> None:
        """Add a loss's gradients; DeepSpeed averages and shards them during the backward pass."""
        self._backward(loss * watch.mark(), last)

    def _backward(self, loss: Tensor, last: bool) -> None:
        self.engine.set_gradient_accumulation_boundary(last)
        self.engine.backward(loss, scale_wrt_gas=False)

    def step(self, watch: FiniteWatch) -> Tensor:
        """Clip and step; returns the gradient norm before clipping, for which the host waits for the device."""
        self.engine.step()
        norm = torch.as_tensor(float(self.engine.get_global_grad_norm()), device=self.tensors[0].device)
        if not self.engine.was_step_applied():
            norm = torch.full_like(norm, torch.nan)
        watch.end_step(norm[None], ["one of the trained weights"])  # DeepSpeed does not name it
        self._advance()
        return norm

    @torch.no_grad()
    def take(self, weights: Mapping[str, Tensor], average: Mapping[str, Tensor]) -> None:
        """Set the weights and their average, also in the copy of its share that each rank steps."""
        super().take(weights, average)
        for parameter in self.parameters:
            self._utils.safe_set_full_fp32_param(parameter, parameter.detach())

    def _optimizer_state(self) -> dict[str, Any]:
        found = next(iter(self.optimizer.state.values()), None)
        state = {}
        for i, parameter in enumerate(self.parameters if found is not None else []):
            moments = {}
            for name in self._MOMENTS:
                moments[name] = self._kept(self._utils.safe_get_full_optimizer_state(parameter, name))
            state[i] = {"step": found["step"].clone(), **moments}  # type: ignore[index]
        (group,) = self.optimizer.state_dict()["param_groups"]
        return {"state": state, "param_groups": [{**group, "params": list(range(len(self.parameters)))}]}

    def _load_optimizer_state(self, state: dict[str, Any]) -> None:
        (group,), (stored,) = self.optimizer.param_groups, state["param_groups"]
        if state["state"]:
            # DeepSpeed makes its moments in the first step: take one that changes nothing.
            group["lr"] = 0.0
            self._backward(torch.stack([0 * p.sum() for p in self.parameters]).sum(), last=True)
            self.engine.step()
            for i, entry in state["state"].items():  # without the weights that never had a gradient
                for moment in self._MOMENTS:
                    value = entry[moment].to(self.parameters[i].device)
                    self._utils.safe_set_full_optimizer_state(self.parameters[i], value, moment)
            steps = max(entry["step"] for entry in state["state"].values())
            for own in self.optimizer.state.values():
                own["step"].copy_(steps)
        group.update({k: v for k, v in stored.items() if k != "params"})
