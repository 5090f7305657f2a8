"""Credit rules, from the dense rewards of a trajectory to the returns of its steps; temporal importance weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from sdpo.method.lazy_torch import torch

if TYPE_CHECKING:
    from torch import Tensor


class Credit(ABC):
    """Turns dense rewards into returns: how far each step of a trajectory is responsible for each reward.

    Subclasses are frozen dataclasses; their fields are the settings of `algorithm.credit`.

    Attributes:
        trains_last_step: whether the last step's return can depend on that step's noise. The update skips the last step
            where it cannot.
    """

    trains_last_step: ClassVar[bool] = True

    @abstractmethod
    def __call__(self, dense: Tensor, discount: float) -> Tensor:
        """Compute the return of every step.

        Args:
            dense: a reward for every step, float32 [B, K, T], in sampling order.
            discount: γ in 0 … 1.

        Returns:
            float32 [B, K, T].
        """


@dataclass(frozen=True)
class StepCredit(Credit):
    """The published rule: the discounted sum of a step's own reward and all later ones, `discounted_returns`."""

    def __call__(self, dense: Tensor, discount: float) -> Tensor:
        """G_i = R̂_i + γ G_{i+1}."""
        return discounted_returns(dense, discount)


@dataclass(frozen=True)
class FutureCredit(Credit):
    """Only the rewards that a step's noise can still change, `future_returns`; none follows the last step."""

    trains_last_step: ClassVar[bool] = False

    def __call__(self, dense: Tensor, discount: float) -> Tensor:
        """γ G_{i+1}."""
        return future_returns(dense, discount)


CREDITS: dict[str, type[Credit]] = {"step": StepCredit, "future": FutureCredit}


def discounted_returns(rewards: Tensor, discount: float) -> Tensor:
    """G_i = R̂_i + γ G_{i+1}, G_T = 0.

    Args:
        rewards: [..., T] in sampling order.
        discount: γ in 0 … 1.

    Returns:
        [..., T].

    Raises:
        ValueError: if the discount is outside 0 … 1.
    """
    if not 0 <= discount <= 1:
        raise ValueError(f"discount must be in 0 … 1, got {discount}")
    returns = rewards.clone()
    for i in range(rewards.shape[-1] - 2, -1, -1):
        returns[..., i] += discount * returns[..., i + 1]
    return returns


def future_returns(rewards: Tensor, discount: float) -> Tensor:
    """γ G_{i+1}: the part of G_i that the noise of step i can still change; 0 at the last step.

    R̂_i belongs to x̂_i, which is fixed before step i draws its noise. In G_i it is a term that is independent of the
    step's log-probability: its gradient has mean 0 and only adds variance. At the last step nothing else is left.

    Args:
        rewards: [..., T] in sampling order.
        discount: γ in 0 … 1.

    Returns:
        [..., T].

    Raises:
        ValueError: if the discount is outside 0 … 1.
    """
    following = discount * discounted_returns(rewards, discount)[..., 1:]
    return torch.cat([following, torch.zeros_like(rewards[..., :1])], dim=-1)


def temporal_weights(step_index: Tensor, decay: float) -> Tensor:
    """λ^i: the noisiest step, which is the one-step sample, weighs most; float32, the shape of `step_index`."""
    return decay ** step_index.float()
