"""Stepwise reward gradients: the dense reward's own gradient, at every step.

The objective is SDPO's idea (Zhang et al., arXiv 2411.11727): the predicted clean image of every step is rewarded, and
the noisiest step, whose image is the one-step sample, weighs most. The gradient takes the place of the log-probability:
ReFL (Xu et al. 2023, arXiv 2304.05977) at every step of a few-step schedule.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from sdpo.method.algorithms.reward_gradient import RewardGradient, Term, check_at_least_one
from sdpo.method.lazy_torch import torch

if TYPE_CHECKING:
    from torch import Generator


@dataclass(frozen=True, kw_only=True)
class SRG(RewardGradient):
    """Maximises Σ_i w_i r(x̂_i) with w_i = λ^i / Σ_j λ^j.

    Attributes:
        temporal_decay: λ, in (0, 1]; 1 weighs all steps alike.
        steps_per_update: `all`, or the number of steps of which each update rewards a random choice, whose weights are
            scaled so that the mean gradient stays the same.
        through: the network evaluations that each reward's gradient passes: 1 takes x_i for a constant, which is the
            definition above; T or more passes back to the starting noise.

    Raises:
        ValueError: if a field is out of its range.
    """

    temporal_decay: float = 1.0
    steps_per_update: Literal["all"] | int = "all"
    through: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.temporal_decay <= 1:
            raise ValueError("algorithm.temporal_decay must be in (0, 1]")
        check_at_least_one(self, "through")
        if self.steps_per_update != "all":
            check_at_least_one(self, "steps_per_update")

    def terms(self, num_steps: int, generator: Generator) -> list[Term]:
        """Reward the image of every step, or of a random choice of steps; see `RewardGradient.terms`."""
        total = sum(self.temporal_decay**i for i in range(num_steps))
        chosen, scale = list(range(num_steps)), 1.0
        if self.steps_per_update != "all" and self.steps_per_update < num_steps:
            chosen = sorted(torch.randperm(num_steps, generator=generator)[: self.steps_per_update].tolist())
            scale = num_steps / self.steps_per_update
        return [Term(i, scale * self.temporal_decay**i / total, min(self.through, i + 1)) for i in chosen]
