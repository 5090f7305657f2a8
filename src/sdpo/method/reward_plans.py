"""Reward plans: the steps of a trajectory whose images are scored, and the reward of every step that follows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from sdpo.method.dense_rewards import group_query_steps, interpolate, query_steps, similarities
from sdpo.method.lazy_torch import torch

if TYPE_CHECKING:
    from torch import Tensor


class RewardPlan(ABC):
    """Chooses the steps whose predicted clean images are scored, and rewards every step from their scores.

    Subclasses are frozen dataclasses; their fields are the settings of `algorithm.reward_plan`. Q is the number of
    queries a trajectory; coinciding queries of a trajectory are scored once.

    Attributes:
        first_query: which of the Q queries is the first step's image; None where the plan does not ask for that image.
        last_query: which of the Q queries is the last step's image, which every plan asks for.
        step_rewards: the rewards of the steps before the last: `scored` are scores of each step's own image,
            `predicted` come from the scores of several images, which may be later ones, and `zero` are none.
    """

    first_query: ClassVar[int | None] = None
    last_query: ClassVar[int] = -1
    step_rewards: ClassVar[Literal["scored", "predicted", "zero"]] = "predicted"

    @abstractmethod
    def steps(self, x0: Tensor) -> Tensor:
        """Choose the steps whose images are scored.

        Args:
            x0: predicted clean latents, [B, K, T, C, H, W].

        Returns:
            int64 [B, K, Q], in 0 … T−1, on the device of `x0`.
        """

    def similarity(self, x0: Tensor, steps: Tensor) -> Tensor | None:
        """Compute what `dense` needs of the latents, which are dropped before the scores arrive.

        Args:
            x0: predicted clean latents, [B, K, T, C, H, W].
            steps: the steps that the plan chose, int64 [B, K, Q].

        Returns:
            A tensor that `dense` receives, such as cosines [B, K, T, Q]; None where the scores are enough.
        """
        return None

    @abstractmethod
    def dense(self, rewards: Tensor, steps: Tensor, similarity: Tensor | None, num_steps: int) -> Tensor:
        """Give every step a reward.

        Args:
            rewards: scores of the queried images, float32 [B, K, Q].
            steps: the queried steps, int64 [B, K, Q].
            similarity: the result of `similarity`.
            num_steps: T.

        Returns:
            float32 [B, K, T].
        """

    @abstractmethod
    def max_queries(self, num_steps: int) -> int:
        """The most images of one trajectory that are scored, for the estimate of a run's cost."""

    def queries_first_step(self, num_steps: int) -> bool:
        """Whether the first step's image is scored; at one step it is also the last one."""
        return self.first_query is not None or num_steps == 1


@dataclass(frozen=True)
class FinalStep(RewardPlan):
    """Scores the last step's image alone; the other steps have reward 0."""

    step_rewards: ClassVar[Literal["scored", "predicted", "zero"]] = "zero"

    def steps(self, x0: Tensor) -> Tensor:
        """The last step of every trajectory, [B, K, 1]."""
        return torch.full((*x0.shape[:2], 1), x0.shape[2] - 1, device=x0.device)

    def dense(self, rewards: Tensor, steps: Tensor, similarity: Tensor | None, num_steps: int) -> Tensor:
        """The score at the last step, 0 at the others, [B, K, T]."""
        return torch.cat([rewards.new_zeros(*rewards.shape[:2], num_steps - 1), rewards], dim=-1)

    def max_queries(self, num_steps: int) -> int:
        """One image."""
        return 1


@dataclass(frozen=True)
class AllSteps(RewardPlan):
    """Scores the image of every step: exact dense rewards, at T queries a trajectory."""

    first_query: ClassVar[int | None] = 0
    step_rewards: ClassVar[Literal["scored", "predicted", "zero"]] = "scored"

    def steps(self, x0: Tensor) -> Tensor:
        """Every step of every trajectory, [B, K, T]."""
        return torch.arange(x0.shape[2], device=x0.device).expand(*x0.shape[:3])

    def dense(self, rewards: Tensor, steps: Tensor, similarity: Tensor | None, num_steps: int) -> Tensor:
        """The scores themselves, [B, K, T]."""
        return rewards

    def max_queries(self, num_steps: int) -> int:
        """T images."""
        return num_steps


@dataclass(frozen=True)
class Anchors(RewardPlan):
    """SDPO's plan: scores the first, the last and an anchor step, and interpolates by the similarity of latents."""

    first_query: ClassVar[int | None] = 0
    last_query: ClassVar[int] = 1

    def steps(self, x0: Tensor) -> Tensor:
        """First, last and anchor step; every trajectory has its own anchor: `query_steps`, [B, K, 3]."""
        return query_steps(x0)

    def similarity(self, x0: Tensor, steps: Tensor) -> Tensor | None:
        """Cosines of every step's latents with the queried ones, [B, K, T, 3]."""
        return similarities(x0, steps)

    def dense(self, rewards: Tensor, steps: Tensor, similarity: Tensor | None, num_steps: int) -> Tensor:
        """Interpolates the scores by the cosines, `interpolate`, [B, K, T]."""
        assert similarity is not None, "given by similarity()"
        return interpolate(similarity, steps, rewards)

    def max_queries(self, num_steps: int) -> int:
        """Three images, or T where T < 3."""
        return min(3, num_steps)


@dataclass(frozen=True)
class GroupAnchors(Anchors):
    """`Anchors` with one anchor and one set of interpolation weights for all branches of a group.

    Where the branches' rewards are equal at every queried step, their interpolated rewards then are too.
    """

    def steps(self, x0: Tensor) -> Tensor:
        """First, last and anchor step, one anchor for all branches of a group: `group_query_steps`, [B, K, 3]."""
        return group_query_steps(x0)

    def similarity(self, x0: Tensor, steps: Tensor) -> Tensor | None:
        """Cosines averaged over the branches, [B, K, T, 3]."""
        cosines = similarities(x0, steps)
        return cosines.mean(1, keepdim=True).expand_as(cosines)


REWARD_PLANS: dict[str, type[RewardPlan]] = {
    "final": FinalStep,
    "anchors": Anchors,
    "group_anchors": GroupAnchors,
    "all": AllSteps,
}
