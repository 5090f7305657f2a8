"""The steps of each trajectory that an epoch's update visits, and their order."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sdpo.method import seeds


@dataclass(frozen=True)
class Visits:
    """The schedule of an update's visits.

    Attributes:
        seed: the run's seed.
        inner_epochs: passes over the trajectories, each with an order of steps of its own.
        timestep_fraction: the share of each trajectory's eligible steps that one pass visits, in (0, 1].
        first_steps: the number of steps of each trajectory that are eligible, from the noisiest on; None means all.
        last_step: whether the last step is eligible, which it is not where it is deterministic, or where the credit
            rule gives it no return.
        shuffle: whether each sample has a random order of steps of its own; else all go from the noisiest step on.
        whole_trajectories: whether an optimizer step follows all steps of its groups at once, not one step of each.
        accumulated: visited steps of each group whose gradients one optimizer step averages; None means all of a pass.
            The last optimizer step of a pass averages fewer where the number does not divide them.
    """

    seed: int = 0
    inner_epochs: int = 1
    timestep_fraction: float = 1.0
    first_steps: int | None = None
    last_step: bool = True
    shuffle: bool = True
    whole_trajectories: bool = False
    accumulated: int | None = 1

    def eligible(self, num_steps: int) -> int:
        """The number of steps among which a pass chooses."""
        count = num_steps if self.last_step else num_steps - 1
        return count if self.first_steps is None else min(count, self.first_steps)

    def visited(self, num_steps: int) -> int:
        """The number of steps of each trajectory that one pass visits."""
        share = self.timestep_fraction * self.eligible(num_steps)
        return max(1, math.ceil(share - 1e-9))  # 0.28 of 25 is 7.000000000000001 in floating point

    def optimizer_steps(self, batches: int, num_steps: int) -> int:
        """The number of optimizer steps an epoch.

        Args:
            batches: the number of batches that an epoch's groups are dealt to.
            num_steps: T.
        """
        passes = 1 if self.whole_trajectories else len(self.accumulations(num_steps))
        return self.inner_epochs * passes * batches

    def accumulations(self, num_steps: int) -> list[range]:
        """The places, in the order of visits, of the steps that each optimizer step of a pass accumulates."""
        count = self.visited(num_steps)
        size = count if self.accumulated is None else self.accumulated
        return [range(start, min(start + size, count)) for start in range(0, count, size)]

    def order(self, sample_index: list[int], num_steps: int, epoch: int, inner: int) -> Tensor:
        """Draw each sample's own permutation of its eligible steps (SDPO, step-shuffled updates).

        Args:
            sample_index: global sample indices, B of them.
            num_steps: T.
            epoch: the epoch, from 1.
            inner: the pass over the trajectories, from 0.

        Returns:
            int64 [B, eligible steps], on the CPU.
        """
        steps = self.eligible(num_steps)
        if not self.shuffle:
            return torch.arange(steps).expand(len(sample_index), steps)
        return torch.stack([seeds.permutation(steps, self.seed, epoch, i, f"order {inner}") for i in sample_index])
