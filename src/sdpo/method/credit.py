"""Discounted returns and temporal importance weights."""

from __future__ import annotations

import torch
from torch import Tensor


def discounted_returns(rewards: Tensor, discount: float) -> Tensor:
    """G_i = R̂_i + γ G_{i+1}, G_T = 0.

    Args:
        rewards: [..., T] in sampling order.
        discount: γ in 0 … 1.

    Returns:
        [..., T].
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
    """
    following = discount * discounted_returns(rewards, discount)[..., 1:]
    return torch.cat([following, torch.zeros_like(rewards[..., :1])], dim=-1)


def temporal_weights(step_index: Tensor, decay: float) -> Tensor:
    """λ^i: the noisiest step, which is the one-step sample, weighs most; float32, the shape of `step_index`."""
    return decay ** step_index.float()
