"""Stepwise Diffusion Policy Optimization (Zhang et al., IEEE TPAMI 2026, arXiv 2411.11727)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from sdpo.method.algorithms.base import Algorithm, branch_pairs, check_clip_range, check_positive
from sdpo.method.credit import temporal_weights
from sdpo.method.lazy_torch import torch
from sdpo.method.reward_plans import Anchors, RewardPlan
from sdpo.method.types import LossOutput, StepBatch

if TYPE_CHECKING:
    from torch import Tensor


def sdpo_loss(
    log_prob: Tensor,
    old_log_prob: Tensor,
    advantage: Tensor,
    step_index: Tensor,
    mask: Tensor,
    *,
    clip_range: float,
    advantage_clip: float,
    temporal_decay: float,
    log_ratio_scale: float,
) -> LossOutput:
    """Dense reward difference learning: mean max((w Δρ − ΔA)², (w Δρ_clip − ΔA)²) with w = λ^i / η.

    ρ = ℓ(θ) − ℓ(old); Δ is the difference of two branches of one prompt and noise; Δρ_clip clamps ℓ(θ) to ℓ(old) ± ε
    first. With more than two branches all K(K−1)/2 pairs have the same weight.

    Args:
        log_prob: ℓ(θ), mean over latent elements, [B, K].
        old_log_prob: ℓ(old), [B, K].
        advantage: A, [B, K].
        step_index: i, int64 [B].
        mask: 1 for steps that have a density, else 0, [B].
        clip_range: ε; 0 switches the clipped term off.
        advantage_clip: the largest |A|; advantages are clamped to ± this value.
        temporal_decay: λ, in (0, 1].
        log_ratio_scale: η, positive.

    Returns:
        The scalar loss with metrics `loss`, `clip_fraction` (share of pairs whose clipped term exceeds the
        unclipped one), `advantage_clip_fraction` (both tails), `log_ratio_difference` (mean |Δρ|) and `approx_kl`
        (mean ρ²/2).
    """
    weight = (temporal_weights(step_index, temporal_decay) / log_ratio_scale)[:, None]  # [B, 1]
    target = branch_pairs(advantage.clamp(-advantage_clip, advantage_clip))  # [B, P]
    difference = branch_pairs(log_prob - old_log_prob)
    error = (weight * difference - target).square()
    worst, clipped_more = error, torch.zeros_like(error)
    if clip_range > 0:
        clamped = log_prob.clamp(old_log_prob - clip_range, old_log_prob + clip_range)
        clipped_error = (weight * branch_pairs(clamped - old_log_prob) - target).square()
        worst = torch.maximum(error, clipped_error)
        clipped_more = (clipped_error > error).float()
    use = mask[:, None].to(weight.dtype)
    loss = (worst * use).mean()
    with torch.no_grad():
        metrics = {
            "loss": loss,
            "clip_fraction": (clipped_more * use).mean(),
            "advantage_clip_fraction": (advantage.abs() > advantage_clip).float().mean(),
            "log_ratio_difference": (difference.abs() * use).mean(),
            "approx_kl": (0.5 * (log_prob - old_log_prob).square() * use).mean(),
        }
    return LossOutput(loss, {name: value.detach() for name, value in metrics.items()})


@dataclass(frozen=True)
class SDPO(Algorithm[StepBatch]):
    """`sdpo_loss` on stepwise returns of dense rewards; the defaults are the published setting.

    Attributes:
        clip_range: ε, the clip range of the log-ratio; 0 switches the clipped term off.
        advantage_clip: the largest |A|.
        temporal_decay: λ, in (0, 1]: step i has the weight λ^i.
        log_ratio_scale: η, positive: the log-ratio difference is divided by this.
    """

    min_branches: ClassVar[int] = 2

    discount: float = 0.99
    reward_plan: RewardPlan = Anchors()
    clip_range: float = 1e-4
    advantage_clip: float = 5.0
    temporal_decay: float = 0.99
    log_ratio_scale: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "advantage_clip", "log_ratio_scale")
        check_clip_range(self.clip_range)
        if not 0 < self.temporal_decay <= 1:
            raise ValueError("algorithm.temporal_decay must be in (0, 1]")

    def loss(self, batch: StepBatch) -> LossOutput:
        """Compute `sdpo_loss` with these settings."""
        return sdpo_loss(
            batch.log_prob,
            batch.old_log_prob,
            batch.advantage,
            batch.step_index,
            batch.mask,
            clip_range=self.clip_range,
            advantage_clip=self.advantage_clip,
            temporal_decay=self.temporal_decay,
            log_ratio_scale=self.log_ratio_scale,
        )
