"""Dense rewards from three queries: the choice of an anchor step, and interpolation by the similarity of latents.

Source: SDPO (Zhang et al., arXiv 2411.11727), dense reward prediction.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sdpo.method.lazy_torch import torch

if TYPE_CHECKING:
    from torch import Tensor

_UNHEALTHY = 1e-3  # |Σ cos| below this share of Σ |cos| would make the weighted mean a quotient of rounding errors.


def similarity(x0: Tensor, step: Tensor) -> Tensor:
    """Cosine similarity of every step's x̂ with the x̂ of one step.

    Args:
        x0: predicted clean latents, [..., T, C, H, W].
        step: the step to compare with, int64 [...].

    Returns:
        float32 [..., T].
    """
    flat = x0.float().flatten(-3)  # [..., T, D]
    chosen = flat.gather(-2, step[..., None, None].expand(*step.shape, 1, flat.shape[-1]))
    return torch.nn.functional.cosine_similarity(flat, chosen, dim=-1)


def anchor_steps(x0: Tensor) -> Tensor:
    """argmin_i cos(x̂_i, x̂_0) + cos(x̂_i, x̂_{T−1}): the step least like either end; int64 [...].

    Args:
        x0: predicted clean latents, [..., T, C, H, W].
    """
    first = torch.zeros(x0.shape[:-4], dtype=torch.long, device=x0.device)
    last = torch.full_like(first, x0.shape[-4] - 1)
    return (similarity(x0, first) + similarity(x0, last)).argmin(-1)


def query_steps(x0: Tensor) -> Tensor:
    """The steps whose images are scored: first, last and anchor, in this order; int64 [..., 3].

    Steps may coincide, and always do for T < 3; the caller scores coinciding ones once.

    Args:
        x0: predicted clean latents, [..., T, C, H, W].
    """
    return _with_ends(anchor_steps(x0), x0)


def group_query_steps(x0: Tensor) -> Tensor:
    """`query_steps` with one anchor for all branches of a group: the step least like either end on average.

    Args:
        x0: predicted clean latents, [B, K, T, C, H, W].

    Returns:
        First, last and anchor step, int64 [B, K, 3].
    """
    first = torch.zeros(x0.shape[:2], dtype=torch.long, device=x0.device)
    like_ends = similarity(x0, first) + similarity(x0, torch.full_like(first, x0.shape[2] - 1))  # [B, K, T]
    return _with_ends(like_ends.mean(1).argmin(-1)[:, None].expand_as(first), x0)


def _with_ends(anchor: Tensor, x0: Tensor) -> Tensor:
    return torch.stack([torch.zeros_like(anchor), torch.full_like(anchor, x0.shape[-4] - 1), anchor], dim=-1)


def similarities(x0: Tensor, steps: Tensor) -> Tensor:
    """Cosine similarity of every step's x̂ with the x̂ of each queried step: all that `interpolate` needs of the latents.

    Args:
        x0: predicted clean latents, [..., T, C, H, W].
        steps: queried steps, int64 [..., Q].

    Returns:
        float32 [..., T, Q].
    """
    return torch.stack([similarity(x0, step) for step in steps.unbind(-1)], dim=-1)


def interpolate(cosines: Tensor, steps: Tensor, rewards: Tensor) -> Tensor:
    """R̂_i = Σ_k R_k cos(x̂_i, x̂_k) / Σ_k cos(x̂_i, x̂_k), and the true reward at each queried step.

    Cosines can be negative, so the published formula can leave the range of the queried rewards or divide by zero.
    Here the quotient is clamped to [min_k R_k, max_k R_k], and where |Σ cos| < 10⁻³ Σ |cos| (or all cosines are 0)
    the plain mean of the queried rewards stands in. Wherever the denominator is healthy and the quotient within the
    range, the value is the published one.

    Args:
        cosines: similarity of every step to each queried one, [..., T, Q].
        steps: queried steps, int64 [..., Q]; where some coincide, the last one's reward counts.
        rewards: rewards of the queried steps, [..., Q].

    Returns:
        float32 [..., T].
    """
    rewards = rewards.float()
    denominator = cosines.sum(-1)
    healthy = denominator.abs() > _UNHEALTHY * cosines.abs().sum(-1)
    quotient = (rewards[..., None, :] * cosines).sum(-1) / torch.where(healthy, denominator, 1.0)
    dense = torch.where(healthy, quotient, rewards.mean(-1, keepdim=True))
    lowest, highest = rewards.amin(-1, keepdim=True), rewards.amax(-1, keepdim=True)
    dense = dense.clamp(lowest, highest)
    for step, reward in zip(steps.unbind(-1), rewards.unbind(-1), strict=True):
        dense = dense.scatter(-1, step[..., None], reward[..., None])
    return dense
