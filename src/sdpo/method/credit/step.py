"""Credit as published (SDPO, arXiv 2411.11727): a step's own reward and all later ones, discounted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sdpo.method.credit.base import Credit

if TYPE_CHECKING:
    from torch import Tensor


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


@dataclass(frozen=True)
class StepCredit(Credit):
    """The published rule: the discounted sum of a step's own reward and all later ones, `discounted_returns`."""

    def __call__(self, dense: Tensor, discount: float) -> Tensor:
        """G_i = R̂_i + γ G_{i+1}."""
        return discounted_returns(dense, discount)
