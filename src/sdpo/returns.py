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


def temporal_weights(num_steps: int, decay: float, device: torch.device | str = "cpu") -> Tensor:
    """λ^i for i = 0 … T−1: the noisiest step, which is the one-step sample, weighs most; float32 [T]."""
    return decay ** torch.arange(num_steps, dtype=torch.float32, device=device)
