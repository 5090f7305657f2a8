"""The outcome of an epoch's update: its metrics, averaged over optimizer steps and processes, and their check."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from sdpo.loop.collectives import Collectives
from sdpo.loop.divergence import FiniteWatch, NotFiniteError
from sdpo.loop.optimizer import Optimization
from sdpo.system.log import logger

Metrics = dict[str, Tensor]
"""Scalars on the device by name."""


@dataclass(frozen=True)
class UpdateResult:
    """The outcome of an epoch's update.

    Attributes:
        metrics: scalars on the device, averaged over the epoch's optimizer steps; 0 where none was made.
        watch: the flags that say which values were not finite.
    """

    metrics: Metrics
    watch: FiniteWatch


class StepMetrics:
    """The metrics of an epoch's optimizer steps.

    Args:
        optimization: the optimizer, which averages over processes.
        counts_skipped: whether optimizer steps are skipped and counted where a value is not finite.
    """

    def __init__(self, optimization: Optimization, counts_skipped: bool) -> None:
        self._optimization = optimization
        self._counts_skipped = counts_skipped
        self._sums: Metrics = {}
        self.made: list[Tensor] = []  # whether each optimizer step was made

    def add(self, metrics: Mapping[str, Tensor], norm: Tensor) -> None:
        """Take in an optimizer step.

        Args:
            metrics: the metrics of its minibatch.
            norm: the norm of its gradient, which is not finite where the step was skipped.
        """
        self.made.append(norm.isfinite())
        for name, value in {**metrics, "grad_norm": norm}.items():
            value = torch.where(self.made[-1], value, 0.0)
            self._sums[name] = self._sums[name] + value if name in self._sums else value

    def means(self) -> Metrics:
        """Average metrics over the optimizer steps that were made, and over all processes."""
        average, count = self._optimization.all_reduce, torch.stack(self.made).sum()
        # Without any optimizer step all means are 0: the scaler lowers its scale, and the next epoch continues.
        means = {name: average(value / count.clamp(min=1)) for name, value in self._sums.items()}
        if self._counts_skipped or self._optimization.scaler.is_enabled():
            means["skipped_steps"] = len(self.made) - count
        return means


def check_update(
    result: UpdateResult, optimization: Optimization, skips: bool, epoch: int, processes: Collectives
) -> None:
    """Refuse an update whose values are not finite, on all processes alike; warn of steps that may be skipped.

    Args:
        result: the outcome of the update.
        optimization: the optimizer that made its steps.
        skips: whether optimizer steps are skipped where a value is not finite.
        epoch: the epoch, for the warning.
        processes: the processes that share the epoch.

    Raises:
        NotFiniteError: naming the first value that is not finite, or the first such weight.
    """
    watch = result.watch
    found = [value for value in processes.gather([watch.first()]) if value is not None]
    if found:
        first = min(found)
        if not skips or result.metrics["skipped_steps"] >= watch.optimizer_steps:
            raise NotFiniteError(f"{first.what}, in optimizer step {first.optimizer_step + 1},")
        if processes.is_main:
            logger.warning(
                "epoch %d: %s was not finite; its optimizer step, and others like it, were skipped",
                epoch,
                first.what,
            )
    own = torch.stack([t.isfinite().all() for t in optimization.tensors]).tolist()
    finite = [all(parts) for parts in zip(*processes.gather([own]), strict=True)]
    if not all(finite):  # finite gradients can do that too; such weights are never saved
        raise NotFiniteError(f"the weight {optimization.names[finite.index(False)]}")
