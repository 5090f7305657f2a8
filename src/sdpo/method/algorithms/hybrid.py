"""Two kinds of updates in one run: reward gradients for rewards that have one, policy updates for those that do not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sdpo.method.algorithms.base import Algorithm
from sdpo.method.algorithms.reward_gradient import RewardGradient
from sdpo.method.algorithms.sdpo import SDPO
from sdpo.method.algorithms.srg import SRG


@dataclass(frozen=True, kw_only=True)
class Hybrid:
    """Every epoch makes a policy update on the rewards without a gradient, then one by the gradient of the others.

    Both have the same prompts, the same optimizer and the same weights. The trajectories of the policy update are
    sampled before it; those of the second update are sampled while it climbs.

    The weights of the section `rewards` compare rewards of one kind. They do not compare the two kinds: a policy update
    normalises its advantages, so that the weight of a reward without a gradient, if it is the only one, has an effect
    by its sign alone. `train.kl_weight` penalises the divergence in both updates, each in its own form, and in one of
    them where `train.kl_form` is set.

    Attributes:
        policy: the algorithm of the policy updates.
        gradient: the algorithm of the reward gradients.
        gradient_weight: factor of the reward gradients' loss. The optimizer's running squares are common to both, so
            the larger gradient sets the scale of the steps.

    Raises:
        ValueError: if the weight is not positive.
    """

    policy: Algorithm[Any] = SDPO()
    gradient: RewardGradient = SRG()
    gradient_weight: float = 1.0

    def __post_init__(self) -> None:
        if self.gradient_weight <= 0:
            raise ValueError("algorithm.gradient_weight must be positive")

    @property
    def branches(self) -> int:
        """K of the policy update's groups."""
        return self.policy.branches
