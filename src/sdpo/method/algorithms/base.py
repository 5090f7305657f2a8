"""The base of all algorithms: what each declares to the training loop, and what their files share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, TypeVar

from sdpo.errors import UserError
from sdpo.method.advantages import Normalizer
from sdpo.method.credit import Credit, StepCredit
from sdpo.method.lazy_torch import torch
from sdpo.method.reward_plans import FinalStep, RewardPlan
from sdpo.method.types import LossOutput, StepBatch, TrajectoryBatch

if TYPE_CHECKING:
    from torch import Tensor

Batch = TypeVar("Batch", StepBatch, TrajectoryBatch)


@dataclass(frozen=True, kw_only=True)
class Algorithm(ABC, Generic[Batch]):
    """An objective and the choices that belong to it.

    Subclasses are frozen dataclasses; their fields are the settings of the section `algorithm`, and the defaults are
    the published setting. A subclass that has a `__post_init__` calls this one's.

    Attributes:
        discount: γ of the returns, in 0 … 1.
        reward_plan: which steps' images are scored, and the reward of every step that follows.
        branches: K, trajectories that share a prompt and, unless `sample.shared_noise` is off, a starting noise.
        credit: the rule that turns dense rewards into returns: `step` (published), `future` or `gain`.
        takes_trajectories: whether the loss takes whole trajectories (`TrajectoryBatch`) instead of single steps
            (`StepBatch`).
        needs_log_prob: whether the loss needs the log-probabilities of random steps, so that sampling must be
            stochastic.
        needs_reference: whether the loss takes the base model's log-probabilities.
        accumulates: the visited steps of each group whose gradients the authors' code averages in one optimizer step;
            `all` of a pass, or a number. `train.accumulate_steps` overrides it.
        min_branches: the fewest branches that the loss can work with.
        normalizer: the advantage normaliser that is part of the algorithm's definition; None leaves the choice to
            `advantage.normalizer`.

    Raises:
        ValueError: if a field is out of its range.
    """

    discount: float = 1.0
    reward_plan: RewardPlan = FinalStep()
    branches: int = 2
    credit: Credit = StepCredit()

    takes_trajectories: ClassVar[bool] = False
    needs_log_prob: ClassVar[bool] = True
    needs_reference: ClassVar[bool] = False
    accumulates: ClassVar[int | Literal["all"]] = 1
    min_branches: ClassVar[int] = 1
    normalizer: ClassVar[type[Normalizer] | None] = None

    def __post_init__(self) -> None:
        if self.branches < self.min_branches:
            why = f"{type(self).__name__} compares branches" if self.min_branches > 1 else "a group needs a trajectory"
            raise ValueError(f"{why}: algorithm.branches must be at least {self.min_branches}")
        if not 0 <= self.discount <= 1:
            raise ValueError("algorithm.discount must be in 0 … 1")
        self.credit.check_algorithm(
            branches=self.branches,
            discount=self.discount,
            reward_plan=self.reward_plan,
            takes_trajectories=self.takes_trajectories,
        )

    def own_normalizer(self) -> Normalizer | None:
        """Build the normaliser with the settings that are part of the algorithm's definition.

        None takes those of the section `advantage`.
        """
        return None

    @abstractmethod
    def loss(self, batch: Batch) -> LossOutput:
        """Compute the loss of a minibatch, a mean over its B groups."""

    def returns(self, dense: Tensor) -> Tensor:
        """Turn dense rewards into returns by the credit rule.

        Args:
            dense: a reward for every step, float32 [B, K, T]; of the groups of all processes where the rule compares
                groups.

        Returns:
            float32 [B, K, T].

        Raises:
            UserError: if the credit rule returns another shape.
        """
        returns = self.credit(dense, self.discount)
        if returns.shape != dense.shape:
            raise UserError(
                f"the credit rule {type(self.credit).__name__} returned shape {tuple(returns.shape)}; return one value "
                f"for each dense reward, shape {tuple(dense.shape)}."
            )
        return returns


def branch_pairs(values: Tensor) -> Tensor:
    """Differences of all pairs of branches, x_k − x_l for k < l: [B, K, …] → [B, K(K−1)/2, …]. For K = 2, a − b."""
    first, second = torch.triu_indices(values.shape[1], values.shape[1], offset=1, device=values.device)
    return values[:, first] - values[:, second]


def check_positive(algorithm: Algorithm[Any], *fields: str) -> None:
    """Reject fields that are not greater than 0.

    Raises:
        ValueError: naming the first such field.
    """
    for field in fields:
        if getattr(algorithm, field) <= 0:
            raise ValueError(f"algorithm.{field} must be positive")


def check_clip_range(clip_range: float) -> None:
    """Reject a negative clip range.

    Raises:
        ValueError: naming `algorithm.clip_range`.
    """
    if clip_range < 0:
        raise ValueError("algorithm.clip_range must be at least 0 (0 switches clipping off)")
