"""The optimizer's side of the update where processes share weights, gradients or moments; see `sharding`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sdpo.distributed import fsdp2 as sharded
from sdpo.errors import UserError
from sdpo.loop.divergence import FiniteWatch
from sdpo.loop.optimizer import Make, Optimization


class SharedOptimization(Optimization):
    """Of which each process holds a part: what a run needs to go on is gathered, and kept by the main process.

    Args:
        main: whether this process is that one.
        parameters: see `Optimization`, as the rest.
        make: see there.
        options: see there.
    """

    collective = True

    def __init__(self, main: bool, parameters: Mapping[str, nn.Parameter], make: Make, **options: Any) -> None:
        self.main = main
        super().__init__(parameters, make, **options)

    def _kept(self, whole: Tensor) -> Tensor | None:
        """What has been gathered, in main memory; None on the other processes."""
        return whole.cpu() if self.main else None


class ShardedOptimization(SharedOptimization):
    """Of weights that FSDP2 has spread: each process steps its part of every one.

    The optimizer is given plain tensors, the parts; the gradients that FSDP2 has averaged are handed to them.

    Args:
        network: whose weights they are.
        processes: how many.
        main: see `SharedOptimization`, as the rest.
        parameters: see there.
        make: see there.
        options: see there.
    """

    def __init__(
        self,
        network: nn.Module,
        processes: int,
        main: bool,
        parameters: Mapping[str, nn.Parameter],
        make: Make,
        **options: Any,
    ) -> None:
        self.network = network
        self.processes = processes
        super().__init__(main, parameters, make, **options)

    def backward(self, loss: Tensor, watch: FiniteWatch, last: bool) -> None:
        """See `Optimization.backward`; gradients are averaged while they come."""
        del last
        (loss * watch.mark()).backward()  # type: ignore[no-untyped-call]

    def step(self, watch: FiniteWatch) -> Tensor:
        """See `Optimization.step`."""
        for parameter, tensor in zip(self.parameters, self.tensors, strict=True):
            if sharded.local(parameter).data_ptr() != tensor.data_ptr():
                raise UserError(f"torch {torch.__version__} moves weights that FSDP2 has spread: use a newer one")
            if parameter.grad is not None:
                tensor.grad = parameter.grad.to_local()  # type: ignore[attr-defined]
                parameter.grad = None
        return super().step(watch)

    def _reduce(self, gradients: list[Tensor], watch: FiniteWatch) -> Tensor:
        squares = torch.stack(torch._foreach_norm(gradients)).square()
        return (self.all_reduce(squares) * self.processes).sqrt()

    def _tensors(self) -> list[nn.Parameter]:
        return [nn.Parameter(sharded.local(p).detach()) for p in self.parameters]

    def _whole(self, tensors: list[Any]) -> dict[str, Tensor]:
        whole = [self._gathered(tensor.detach(), p) for tensor, p in zip(tensors, self.parameters, strict=True)]
        return {name: tensor for name, tensor in zip(self.names, whole, strict=True) if tensor is not None}

    def _put(self, whole: Mapping[str, Tensor], tensors: list[Any]) -> None:
        for name, parameter, tensor in zip(self.names, self.parameters, tensors, strict=True):
            tensor.copy_(sharded.part_of(whole[name], parameter))

    def _optimizer_state(self) -> dict[str, Any]:
        state = self.optimizer.state_dict()
        return {**state, "state": self._each(state["state"], self._gathered)}

    def _load_optimizer_state(self, state: dict[str, Any]) -> None:
        super()._load_optimizer_state({**state, "state": self._each(state["state"], sharded.part_of)})

    def _gathered(self, part: Tensor, parameter: nn.Parameter) -> Tensor | None:
        return self._kept(sharded.gathered(part, parameter))

    def _each(self, state: dict[int, Any], change: Callable[[Tensor, nn.Parameter], Tensor | None]) -> dict[int, Any]:
        """The state of an optimizer with its moments changed; the count of steps is no moment."""
        return {
            i: {k: change(v, self.parameters[i]) if v.ndim else v for k, v in entry.items()}
            for i, entry in state.items()
        }

    def changed(self) -> None:
        """See `Optimization.changed`."""
        sharded.forget_gathered(self.network)


class ZeROOptimization(SharedOptimization):
    """DeepSpeed's ZeRO-2 (Rajbhandari et al. 2020, arXiv 1910.02054): gradients and moments are split, weights are not.

    DeepSpeed's engine owns the trained weights alone. It averages and splits gradients while they come, clips, steps,
    and leaves out a step whose gradients are not finite.

    Args:
        settings: DeepSpeed's section `zero_optimization`.
        main: see `SharedOptimization`, as the rest.
        parameters: see there.
        make: see there.
        options: see there.
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
            # DeepSpeed lays them out in one buffer; `contiguous()` would leave kernels of 1 × 1 in channels-last order.
            parameter.data = parameter.data.clone(memory_format=torch.contiguous_format)
        super().__init__(main, parameters, make, **options)
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

    def backward(self, loss: Tensor, watch: FiniteWatch, last: bool) -> None:
        """See `Optimization.backward`."""
        self._backward(loss * watch.mark(), last)

    def _backward(self, loss: Tensor, last: bool) -> None:
        self.engine.set_gradient_accumulation_boundary(last)
        self.engine.backward(loss, scale_wrt_gas=False)

    def step(self, watch: FiniteWatch) -> Tensor:
        """See `Optimization.step`; DeepSpeed reads the norm on the host."""
        self.engine.step()
        norm = torch.as_tensor(float(self.engine.get_global_grad_norm()), device=self.tensors[0].device)
        if not self.engine.was_step_applied():
            norm = torch.full_like(norm, torch.nan)
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
            moments = {}
            for name in self._MOMENTS:
                moments[name] = self._kept(self._utils.safe_get_full_optimizer_state(parameter, name))
            state[i] = {"step": found["step"].clone(), **moments}  # type: ignore[index]
        (group,) = self.optimizer.state_dict()["param_groups"]
        return {"state": state, "param_groups": [{**group, "params": list(range(len(self.parameters)))}]}

    def _load_optimizer_state(self, state: dict[str, Any]) -> None:
        (group,), (stored,) = self.optimizer.param_groups, state["param_groups"]
        if state["state"]:
            # DeepSpeed makes its moments in the first step; one that changes nothing.
            group["lr"] = 0.0
            self._backward(torch.stack([0 * p.sum() for p in self.parameters]).sum(), last=True)
            self.engine.step()
            for i, entry in state["state"].items():  # a weight that never had a gradient has none
                for moment in self._MOMENTS:
                    value = entry[moment].to(self.parameters[i].device)
                    self._utils.safe_set_full_optimizer_state(self.parameters[i], value, moment)
            steps = max(entry["step"] for entry in state["state"].values())
            for own in self.optimizer.state.values():
                own["step"].copy_(steps)
        group.update({k: v for k, v in stored.items() if k != "params"})
