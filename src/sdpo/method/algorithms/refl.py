"""Reward Feedback Learning (Xu et al. 2023, arXiv 2304.05977): the reward of one random late step's predicted image.

Their loss on a set of real images and captions, which keeps a many-step model near its training data, is left out: a
few-step model's training data and loss are another model's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sdpo.method.algorithms.reward_gradient import RewardGradient, Term
from sdpo.method.lazy_torch import torch

if TYPE_CHECKING:
    from torch import Generator, Tensor


@dataclass(frozen=True, kw_only=True)
class ReFL(RewardGradient):
    """Maximises −φ(r(x̂_i)) with φ(r) = max(margin − r, 0), at one random late step i an update; x_i is a constant.

    Attributes:
        first_step: the share of the trajectory before which no step is chosen, in 0 … 1: the authors choose among the
            steps 30 to 39 of 40, which is 0.75. With T steps the choice is among steps ⌊0.75 T⌋ … T − 1.
        margin: the reward above which an image is no longer improved; null has no such bound. The authors use 2 for
            ImageReward.

    Raises:
        ValueError: if a field is out of its range.
    """

    first_step: float = 0.75
    margin: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.first_step < 1:
            raise ValueError("algorithm.first_step must be at least 0 and below 1")
        if self.margin is not None and not math.isfinite(self.margin):
            raise ValueError("algorithm.margin must be a finite number, or null")

    def terms(self, num_steps: int, generator: Generator) -> list[Term]:
        """Reward the image of one random late step; see `RewardGradient.terms`."""
        first = math.floor(self.first_step * num_steps)
        step = int(torch.randint(first, num_steps, (1,), generator=generator))
        return [Term(step, 1.0)]

    def objective(self, rewards: Tensor) -> Tensor:
        """−φ(r), elementwise, [N]."""
        return rewards if self.margin is None else -(self.margin - rewards).clamp(min=0)
