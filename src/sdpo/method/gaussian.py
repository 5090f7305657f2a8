"""Diagonal Gaussians over latents: sampling, log-density and KL divergence, reduced by mean or sum."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

Reduction = Literal["mean", "sum"]


def _reduce(per_element: Tensor, reduction: Reduction) -> Tensor:
    flat = per_element.flatten(1)
    if reduction == "mean":
        return flat.mean(1)
    if reduction == "sum":
        return flat.sum(1)
    raise ValueError(f"reduction must be 'mean' or 'sum', got {reduction!r}")


def full(tensor: Tensor) -> Tensor:
    """The tensor in float32; float64 stays, so that gradients can be checked to its precision."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _expand(std: Tensor, like: Tensor) -> Tensor:
    return full(std).reshape(-1, *([1] * (like.ndim - 1)))


def sample(mean: Tensor, std: Tensor, noise: Tensor) -> Tensor:
    """Draw mean + std · noise, with mean and noise [N, ...] and std [N] or [1]; returns [N, ...]."""
    return mean + _expand(std, mean) * noise


def log_prob(x: Tensor, mean: Tensor, std: Tensor, reduction: Reduction = "mean") -> Tensor:
    """Log N(x; mean, std²), reduced over all axes but the first.

    The clip range and the log-ratio scale of the published SDPO settings assume the mean reduction.
    Where std is 0 the step has no density; the value there is 0, and the caller's stochastic mask must drop it.

    Args:
        x: the drawn latents, [N, ...].
        mean: the means, [N, ...].
        std: the standard deviations, [N] or [1], ≥ 0.
        reduction: `mean` or `sum` over the latent elements.

    Returns:
        [N], in float32, or float64 for inputs in float64.

    Raises:
        ValueError: if the reduction is unknown.
    """
    std = _expand(std, mean)
    random = std > 0
    safe = torch.where(random, std, 1.0)
    z = (full(x) - full(mean)) / safe
    per_element = -0.5 * z.square() - safe.log() - 0.5 * math.log(2 * math.pi)
    return _reduce(torch.where(random, per_element, 0.0), reduction)


def kl_divergence(mean_p: Tensor, mean_q: Tensor, std: Tensor, reduction: Reduction = "mean") -> Tensor:
    """KL(N(mean_p, std²) ‖ N(mean_q, std²)), reduced over all axes but the first; 0 where std is 0.

    Args:
        mean_p: the means of p, [N, ...].
        mean_q: the means of q, [N, ...].
        std: the standard deviations of both, [N] or [1], ≥ 0.
        reduction: `mean` or `sum` over the latent elements.

    Returns:
        [N], in float32, or float64 for inputs in float64.

    Raises:
        ValueError: if the reduction is unknown.
    """
    std = _expand(std, mean_p)
    random = std > 0
    per_element = 0.5 * ((full(mean_p) - full(mean_q)) / torch.where(random, std, 1.0)).square()
    return _reduce(torch.where(random, per_element, 0.0), reduction)
