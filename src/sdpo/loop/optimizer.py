"""Makes optimizer steps: averages gradients over processes, clips them, steps, updates the average of the weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sdpo.loop.divergence import FiniteWatch
from sdpo.loop.ema import EMA

_BUCKET = 2**24  # gradient elements that are averaged over processes in one call

Make = Callable[[list[nn.Parameter]], tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]]
"""Makes the optimizer of given tensors, and its learning-rate schedule, which advances with every optimizer step."""


def alone(tensor: Tensor) -> Tensor:
    """The average over all processes of a run with one process."""
    return tensor


class Optimization:
    """The optimizer, its schedule, the loss scaler and the average of the weights; every process has them whole.

    Args:
        parameters: the trained parameters by name.
        make: makes the optimizer and its schedule.
        max_grad_norm: the bound of the global gradient norm.
        ema_decay: the decay of the average of the weights; None keeps no average.
        ema_warmup: whether that decay is warmed up.
        all_reduce: averages a tensor over all processes.
        scaled: whether the loss is scaled, as float16 gradients underflow otherwise; other types need no scaling.

    Attributes:
        collective: whether all processes must take part when the state of a checkpoint is collected.
        names: the names of the trained parameters.
        tensors: the tensors that this process optimizes, one a parameter; here the parameters themselves.
    """

    collective = False

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        make: Make,
        *,
        max_grad_norm: float = 1.0,
        ema_decay: float | None = None,
        ema_warmup: bool = True,
        all_reduce: Callable[[Tensor], Tensor] = alone,
        scaled: bool = False,
    ) -> None:
        self.names = list(parameters)
        self.parameters = list(parameters.values())
        self.tensors = self._tensors()
        self.optimizer, self.lr_schedule = make(self.tensors)
        self.max_grad_norm = max_grad_norm
        self.ema = EMA(self.tensors, ema_decay, self.changed, ema_warmup) if ema_decay is not None else None
        self.all_reduce = all_reduce
        device = self.tensors[0].device
        self.scaler = torch.amp.GradScaler(device.type, enabled=scaled)

    @property
    def learning_rate(self) -> float:
        """The learning rate of the next optimizer step."""
        return float(self.optimizer.param_groups[0]["lr"])

    def backward(self, loss: Tensor, watch: FiniteWatch, last: bool) -> None:
        """Add the gradients of a loss.

        Args:
            loss: a part of the minibatch's loss.
            watch: the flags of the minibatch, the loss's own included.
            last: whether this is the last part before `step`.
        """
        del watch, last  # needed where gradients are reduced during the backward pass
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]

    def step(self, watch: FiniteWatch) -> Tensor:
        """Average gradients over processes, clip them, and make an optimizer step.

        Args:
            watch: the flags of the minibatch; receives the norms of the gradients.

        Returns:
            The gradient norm before clipping, a scalar. Where a value of the minibatch is not finite, the norm is not
            either, and the step is skipped. Scaled float16 gradients overflow now and then, which lowers the scale.
        """
        names, gradients = zip(
            *((n, t.grad) for n, t in zip(self.names, self.tensors, strict=True) if t.grad is not None), strict=True
        )
        norms = self._reduce(list(gradients), watch)
        norm = torch.linalg.vector_norm(norms)
        nn.utils.clip_grads_with_norm_(self.tensors, self.max_grad_norm, norm)
        scale = self.scaler.get_scale()
        watch.end_step(None if self.scaler.is_enabled() else norms, list(names))
        if not self.scaler.is_enabled() and getattr(self.optimizer, "_step_supports_amp_scaling", False):
            self.optimizer.found_inf = (~norm.isfinite()).float()  # type: ignore[attr-defined]
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.scaler.get_scale() >= scale:
            self._advance()
        return norm.detach()

    def _advance(self) -> None:
        self.lr_schedule.step()
        if self.ema is not None:
            self.ema.update()

    def _reduce(self, gradients: list[Tensor], watch: FiniteWatch) -> Tensor:
        """Average P gradients over processes; returns the norms of the averages, [P]."""
        watch.poison(gradients[0])
        self._average_gradients(gradients)  # while scaled, so that all processes see an overflow of any
        self.scaler.unscale_(self.optimizer)
        return torch.stack(torch._foreach_norm(gradients))

    def _average_gradients(self, gradients: list[Tensor]) -> None:
        """Average gradients over all processes in buckets: few calls, little additional memory."""
        if self.all_reduce is alone:
            return
        bucket: list[Tensor] = []
        for gradient in gradients:
            bucket.append(gradient)
            if sum(g.numel() for g in bucket) >= _BUCKET:
                self._average(bucket)
                bucket = []
        self._average(bucket)

    def _average(self, gradients: list[Tensor]) -> None:
        if not gradients:
            return
        flat = self.all_reduce(torch.cat([g.flatten() for g in gradients]))
        for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(mean.view_as(gradient))

    # -- the state of a checkpoint, whole, however the tensors are distributed ------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The state apart from weights: optimizer, schedule, loss scaler, and the number of averaged updates."""
        schedule = {k: v for k, v in self.lr_schedule.state_dict().items() if k != "lr_lambdas"}
        return {
            "optimizer": self._optimizer_state(),
            "lr_schedule": schedule,
            "scaler": self.scaler.state_dict(),
            "ema_count": self.ema.count if self.ema is not None else 0,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state that `state_dict` returned; weights and averages are set by `take`."""
        self._load_optimizer_state(state["optimizer"])
        self.lr_schedule.load_state_dict({**state["lr_schedule"], "lr_lambdas": [None]})
        if state["scaler"]:  # empty where the run so far needed no scaling
            self.scaler.load_state_dict(state["scaler"])
        if self.ema is not None:
            self.ema.resume(state["ema_count"])

    def weights(self) -> dict[str, Tensor]:
        """The trained parameters, whole, by name."""
        return self._whole(self.tensors)

    def average(self) -> dict[str, Tensor]:
        """The average of the trained parameters, whole, by name; empty where none is kept."""
        return self._whole(self.ema.average) if self.ema is not None else {}

    @torch.no_grad()
    def take(self, weights: Mapping[str, Tensor], average: Mapping[str, Tensor]) -> None:
        """Set the trained parameters and their average.

        Args:
            weights: the whole parameters by name.
            average: the whole averages by name; not used where no average is kept.
        """
        self._put(weights, self.tensors)
        if self.ema is not None:
            self._put(average, self.ema.average)
        self.changed()

    # -- the distribution of the tensors: overridden where processes share them ------------------------------

    def _tensors(self) -> list[nn.Parameter]:
        return self.parameters

    def _whole(self, tensors: list[Any]) -> dict[str, Tensor]:
        return dict(zip(self.names, (t.detach() for t in tensors), strict=True))

    def _put(self, whole: Mapping[str, Tensor], tensors: list[Any]) -> None:
        for name, tensor in zip(self.names, tensors, strict=True):
            tensor.copy_(whole[name])

    def _optimizer_state(self) -> dict[str, Any]:
        return self.optimizer.state_dict()

    def _load_optimizer_state(self, state: dict[str, Any]) -> None:
        # Fused kernels walk memory: moments need the memory layout of their weights, however they were saved.
        laid_out = {
            i: {
                k: torch.empty_like(self.tensors[i]).copy_(v) if _is_moment(v, self.tensors[i]) else v
                for k, v in entry.items()
            }
            for i, entry in state["state"].items()
        }
        self.optimizer.load_state_dict({**state, "state": laid_out})

    def changed(self) -> None:
        """Called when the weights have been set other than by an optimizer step, which makes copies of them stale."""


def _is_moment(value: Any, weight: Tensor) -> bool:
    """Whether a state tensor matches its weight elementwise; those of 8-bit optimizers do not."""
    return isinstance(value, Tensor) and value.shape == weight.shape and value.dtype == weight.dtype


def warmup_decay(name: str, warmup_steps: int, total_steps: int) -> Callable[[int], float]:
    """The factor of the learning rate at each optimizer step: a linear warm-up, then constant, or a decay to 0.

    Args:
        name: `constant`, `linear` or `cosine`.
        warmup_steps: optimizer steps of the warm-up.
        total_steps: optimizer steps of the run, at the end of which a decaying rate is 0.
    """

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        if name == "constant":
            return 1.0
        progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
        return 1 - progress if name == "linear" else 0.5 * (1 + math.cos(math.pi * progress))

    return factor
