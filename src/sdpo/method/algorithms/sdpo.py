"""Stepwise Diffusion Policy Optimization (Zhang et al., IEEE TPAMI 2026, arXiv 2411.11727)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sdpo.method.algorithms.base import Algorithm, Credit, RewardPlan, branch_pairs, check_fields
from sdpo.method.credit import temporal_weights
from sdpo.method.types import LossOutput, StepBatch


def sdpo_loss(
    log_prob: Tensor,
    old_log_prob: Tensor,
    advantage: Tensor,
    step_index: Tensor,
    *,
    clip_range: float = 1e-4,
    advantage_clip: float = 5.0,
    temporal_decay: float = 0.99,
    log_ratio_scale: float = 1.0,
    mask: Tensor | None = None,
) -> LossOutput:
    """Dense reward difference learning: mean max((w Δρ − ΔA)², (w Δρ_clip − ΔA)²) with w = λ^i / η.

    ρ = ℓ(θ) − ℓ(old); Δ is the difference of two branches of one prompt and noise; Δρ_clip clamps ℓ(θ) to ℓ(old) ±
    clip_range first. With more than two branches all K(K−1)/2 pairs count alike.

    Args:
        log_prob: ℓ(θ), mean over latent elements, [B, K].
        old_log_prob: ℓ(old), [B, K].
        advantage: A, [B, K].
        step_index: i, int64 [B].
        clip_range: 0 switches the clipped term off.
        advantage_clip: A is clipped to ± this value.
        temporal_decay: λ.
        log_ratio_scale: η.
        mask: 1 for steps that have a density, [B]; None means all.

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
    use = torch.ones_like(weight) if mask is None else mask[:, None].to(weight.dtype)
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
    """The published setting; see `sdpo_loss` for the fields."""

    discount: float = 0.99
    clip_range: float = 1e-4
    advantage_clip: float = 5.0
    temporal_decay: float = 0.99
    log_ratio_scale: float = 1.0
    reward_plan: RewardPlan = "anchors"
    branches: int = 2
    credit: Credit = "step"

    def __post_init__(self) -> None:
        check_fields(self, "sdpo", branches=2)
        if not 0 < self.temporal_decay <= 1:
            raise ValueError("algorithm.temporal_decay must be in (0, 1]")

    def loss(self, batch: StepBatch) -> LossOutput:
        """`sdpo_loss` with this setting."""
        return sdpo_loss(
            batch.log_prob,
            batch.old_log_prob,
            batch.advantage,
            batch.step_index,
            clip_range=self.clip_range,
            advantage_clip=self.advantage_clip,
            temporal_decay=self.temporal_decay,
            log_ratio_scale=self.log_ratio_scale,
            mask=batch.mask,
        )
