"""Branching at one step: the branches of a group share a prefix, and part at one step.

The branches of an ordinary group part at the first step, and every later step of each draws noise of its own: what they
differ by is the doing of all steps. Here one trajectory leads to x_i, step i draws K noises, and what follows can be
the same in all branches. Then the difference between their rewards is the doing of step i alone.

Sources: TempFlow-GRPO (arXiv 2508.04324), MixGRPO (arXiv 2507.21802), G²RPO (arXiv 2510.01982), E-GRPO (arXiv
2601.00423).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from sdpo.method import seeds
from sdpo.method.lazy_torch import torch

if TYPE_CHECKING:
    from torch import Tensor

AfterBranch = Literal["common", "none", "independent"]


@dataclass(frozen=True)
class Branching:
    """Where the branches of each group part, and what follows.

    Attributes:
        weights: w_i of the steps 0 … T−2, at least 0: a group's branches part at step i with probability w_i / Σ w. The
            last step has none, because nothing that is rewarded follows it.
        after: the noise after the step: `common` is the same in all branches of a group, `none` stands for
            deterministic steps, and with `independent` each branch has its own.
        lookahead: the number of x̂ after the step at which a trajectory ends; None goes on to the last step.

    Raises:
        ValueError: if there are no weights, a weight is negative or not finite, all are 0, or the lookahead is not
            positive.
    """

    weights: tuple[float, ...]
    after: AfterBranch = "common"
    lookahead: int | None = None

    def __post_init__(self) -> None:
        if not self.weights or not all(math.isfinite(w) and w >= 0 for w in self.weights) or not any(self.weights):
            raise ValueError(f"the weights of steps must be finite, at least 0 and not all 0, got {self.weights}")
        if self.lookahead is not None and self.lookahead < 1:
            raise ValueError(f"the lookahead must be at least 1, got {self.lookahead}")

    @classmethod
    def at(cls, step: int, num_steps: int, after: AfterBranch = "common", lookahead: int | None = None) -> Branching:
        """Branching at the same step in every group.

        Args:
            step: i, in 0 … T−2.
            num_steps: T.
            after: the noise after the step.
            lookahead: the number of x̂ after the step; None goes on to the last step.

        Raises:
            ValueError: if the step is outside 0 … T−2.
        """
        if not 0 <= step <= num_steps - 2:
            raise ValueError(f"the step must be in 0 … {num_steps - 2}, got {step}")
        return cls(tuple(float(i == step) for i in range(num_steps - 1)), after, lookahead)

    @property
    def num_steps(self) -> int:
        """T, the steps of the schedule."""
        return len(self.weights) + 1

    @property
    def steps(self) -> list[int]:
        """The steps at which branches can part, ascending."""
        return [step for step, weight in enumerate(self.weights) if weight > 0]

    @property
    def sees_first(self) -> bool:
        """Whether the first image that is looked at is the first step's in every group."""
        return self.steps == [0]

    @property
    def sees_last(self) -> bool:
        """Whether the last image that is looked at is the last step's in every group."""
        return self.lookahead is None or self.steps[0] + self.lookahead >= self.num_steps - 1

    def draw(self, seed: int, epoch: int, sample_index: Sequence[int]) -> Tensor:
        """Draw the step of each group, from (seed, epoch, global sample index) alone.

        Args:
            seed: the run's seed.
            epoch: the epoch, from 1.
            sample_index: the global sample indices of B groups.

        Returns:
            i of each group, int64 [B], on the CPU.
        """
        if len(self.steps) == 1:
            return torch.full((len(sample_index),), self.steps[0])
        weights = torch.tensor(self.weights, dtype=torch.float64)
        generators = (seeds.generator(seed, epoch, index, "branch") for index in sample_index)
        return torch.cat([torch.multinomial(weights, 1, generator=generator) for generator in generators])

    def seen(self, step: Tensor) -> Tensor:
        """The number of x̂ of each branch that are looked at: x̂_i and those that follow, e − i + 1.

        e is the last step that is evaluated: T − 1, or i + lookahead where that comes before it.

        Args:
            step: i of each group, int64 [B].

        Returns:
            int64 [B], each at least 2.
        """
        following = self.num_steps - 1 - step
        return 1 + (following if self.lookahead is None else following.clamp(max=self.lookahead))

    def evaluations(self, step: Tensor, branches: int) -> int:
        """Count the network evaluations that sample groups: (i + 1) + K (e − i) each.

        Args:
            step: i of each group, int64 [B].
            branches: K.
        """
        return int((step + 1 + branches * (self.seen(step) - 1)).sum())
