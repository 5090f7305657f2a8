"""What an algorithm declares to the loop: its branches, its reward plan, its unit, and its loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Literal

from sdpo.types import LossOutput, StepBatch

RewardPlan = Literal["final", "anchors", "all"]
Credit = Literal["step", "future"]


class Algorithm(ABC):
    """Base of all algorithms; subclasses are frozen dataclasses whose fields are the published setting.

    Attributes:
        branches: K, trajectories that share a prompt (and, for SDPO, a starting noise).
        reward_plan: `final` rewards the last image alone, `anchors` queries three images and spreads, `all` queries
            every step.
        discount: γ of the returns.
        credit: `step` counts the reward of a step's own x̂ in its return, `future` only the rewards after it.
        unit: whether the loss takes single steps or whole trajectories.
        needs_log_prob: whether sampling must be stochastic.
    """

    branches: int
    reward_plan: RewardPlan
    discount: float
    credit: Credit
    unit: ClassVar[Literal["step", "trajectory"]] = "step"
    needs_log_prob: ClassVar[bool] = True

    @abstractmethod
    def loss(self, batch: StepBatch) -> LossOutput:
        """The loss of a minibatch: a mean over its groups."""
