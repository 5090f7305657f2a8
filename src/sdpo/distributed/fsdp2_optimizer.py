"""The optimizer's side of the update where FSDP2 has sharded all trained weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sdpo.distributed.fsdp2 import forget_gathered, gathered, local, shard_of
from sdpo.distributed.sharded_optimizer import ShardedOptimization
from sdpo.errors import UserError
from sdpo.loop.divergence import FiniteWatch
from sdpo.loop.optimizer import Make


class FSDP2Optimization(ShardedOptimization):
    """An optimizer with which every rank steps its own shard of each weight.

    The optimizer works on plain tensors, the shards. FSDP2 averages gradients over ranks during the backward pass, and
    `step` hands them to the shards.

    Args:
        network: the sharded network whose weights are trained.
        processes: number of ranks.
        main: whether this process is the main one, which keeps gathered tensors.
        parameters: the trained parameters by name.
        make: makes the optimizer and its schedule over given tensors.
        options: the keyword arguments of `Optimization`.
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
        """Add a loss's gradients; FSDP2 averages them over ranks during the backward pass."""
        del last
        (loss * watch.mark()).backward()  # type: ignore[no-untyped-call]

    def step(self, watch: FiniteWatch) -> Tensor:
        """Hand the averaged gradients to the shards, clip and step; returns the gradient norm before clipping."""
        for parameter, tensor in zip(self.parameters, self.tensors, strict=True):
            if local(parameter).data_ptr() != tensor.data_ptr():
                raise UserError(
                    f"torch {torch.__version__} moved weights that FSDP2 had sharded: install a newer torch"
                )
            if parameter.grad is not None:
                tensor.grad = parameter.grad.to_local()  # type: ignore[attr-defined]
                parameter.grad = None
        return super().step(watch)

    def changed(self) -> None:
        """Free gathered weights after the shards have been written to."""
        forget_gathered(self.network)

    def _reduce(self, gradients: list[Tensor], watch: FiniteWatch) -> Tensor:
        squares = torch.stack(torch._foreach_norm(gradients)).square()
        return (self.all_reduce(squares) * self.processes).sqrt()

    def _tensors(self) -> list[nn.Parameter]:
        return [nn.Parameter(local(p).detach()) for p in self.parameters]

    def _whole(self, tensors: list[Any]) -> dict[str, Tensor]:
        whole = [self._gathered(tensor.detach(), p) for tensor, p in zip(tensors, self.parameters, strict=True)]
        return {name: tensor for name, tensor in zip(self.names, whole, strict=True) if tensor is not None}

    def _put(self, whole: Mapping[str, Tensor], tensors: list[Any]) -> None:
        for name, parameter, tensor in zip(self.names, self.parameters, tensors, strict=True):
            tensor.copy_(shard_of(whole[name], parameter))

    def _optimizer_state(self) -> dict[str, Any]:
        state = self.optimizer.state_dict()
        return {**state, "state": self._map_moments(state["state"], self._gathered)}

    def _load_optimizer_state(self, state: dict[str, Any]) -> None:
        super()._load_optimizer_state({**state, "state": self._map_moments(state["state"], shard_of)})

    def _gathered(self, shard: Tensor, parameter: nn.Parameter) -> Tensor | None:
        return self._kept(gathered(shard, parameter))

    def _map_moments(
        self, state: dict[int, Any], change: Callable[[Tensor, nn.Parameter], Tensor | None]
    ) -> dict[int, Any]:
        """Change the moments in an optimizer's state; the count of steps, a scalar, stays."""
        return {
            i: {k: change(v, self.parameters[i]) if v.ndim else v for k, v in entry.items()}
            for i, entry in state.items()
        }
