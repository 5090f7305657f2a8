"""Credit for the rewards that a step's noise can still change."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from sdpo.method.credit.base import Credit
from sdpo.method.credit.step import discounted_returns
from sdpo.method.lazy_torch import torch

if TYPE_CHECKING:
    from torch import Tensor


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


@dataclass(frozen=True)
class FutureCredit(Credit):
    """Only the rewards that a step's noise can still change, `future_returns`; none follows the last step."""

    trains_last_step: ClassVar[bool] = False

    def __call__(self, dense: Tensor, discount: float) -> Tensor:
        """γ G_{i+1}."""
        return future_returns(dense, discount)
