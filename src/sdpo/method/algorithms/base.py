"""What an algorithm declares to the loop: its branches, its reward plan, its unit, and its loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Generic, Literal, TypeVar

import torch
from torch import Tensor

from sdpo.method.types import LossOutput, StepBatch, TrajectoryBatch

RewardPlan = Literal["final", "anchors", "group_anchors", "all"]
Credit = Literal["step", "future"]
Batch = TypeVar("Batch", StepBatch, TrajectoryBatch)


class Algorithm(ABC, Generic[Batch]):
    """Base of all algorithms; subclasses are frozen dataclasses whose fields are the published setting.

    Attributes:
        branches: K, trajectories that share a prompt and (unless `sample.shared_noise` is off) a starting noise.
        reward_plan: `final` rewards the last image alone, `anchors` queries three images and spreads, `group_anchors`
            does so with one anchor and one set of weights for all branches of a group, `all` queries every step.
        discount: γ of the returns.
        credit: `step` counts the reward of a step's own x̂ in its return, `future` only the rewards after it.
        unit: whether the loss takes single steps (`StepBatch`) or whole trajectories (`TrajectoryBatch`).
        needs_log_prob: whether sampling must be stochastic.
        needs_reference: whether the loss takes the base model's log-probabilities.
        normalizer: the advantage normaliser that is part of the algorithm's definition; None leaves it to the config.
    """

    branches: int
    reward_plan: RewardPlan
    discount: float
    credit: Credit
    unit: ClassVar[Literal["step", "trajectory"]] = "step"
    needs_log_prob: ClassVar[bool] = True
    needs_reference: ClassVar[bool] = False
    normalizer: ClassVar[Literal["group"] | None] = None

    @abstractmethod
    def loss(self, batch: Batch) -> LossOutput:
        """The loss of a minibatch: a mean over its groups."""


def branch_pairs(values: Tensor) -> Tensor:
    """Differences of all pairs of branches, x_k − x_l for k < l: [B, K, …] → [B, K(K−1)/2, …]. For K = 2, a − b."""
    first, second = torch.triu_indices(values.shape[1], values.shape[1], offset=1, device=values.device)
    return values[:, first] - values[:, second]


def check_fields(algorithm: Algorithm[Any], name: str, branches: int) -> None:
    """Refuse fields of a dataclass that no algorithm can work with.

    Raises:
        ValueError: naming the field, if `branches` is less than given, or a range is not a range.
    """
    if algorithm.branches < branches:
        what = {1: "a group needs a trajectory", 2: f"{name} learns from differences between branches"}[branches]
        raise ValueError(f"{what}: algorithm.branches must be at least {branches}")
    if not 0 <= algorithm.discount <= 1:
        raise ValueError("algorithm.discount must be in 0 … 1")
    for field in ("log_ratio_scale", "advantage_clip", "beta"):
        if getattr(algorithm, field, 1.0) <= 0:
            raise ValueError(f"algorithm.{field} must be positive")
    if getattr(algorithm, "clip_range", 0.0) < 0:
        raise ValueError("algorithm.clip_range must be at least 0 (0 switches clipping off)")
