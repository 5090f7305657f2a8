"""REBEL (Gao et al. 2024, arXiv 2404.16767), with an option that clips log-ratios as PRDP does.

It regresses the difference of two trajectories' rewards on the difference of their log-ratios to the policy that
sampled. The square couples all steps of a trajectory; the update still needs the memory of one step only
(`loop/policy_update.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from sdpo.method.algorithms.base import Algorithm, branch_pairs, check_clip_range, check_positive
from sdpo.method.lazy_torch import torch
from sdpo.method.types import LossOutput, TrajectoryBatch

if TYPE_CHECKING:
    from torch import Tensor


def regression_loss(
    log_prob: Tensor,
    old_log_prob: Tensor,
    advantage: Tensor,
    mask: Tensor,
    *,
    log_ratio_scale: float,
    clip_range: float,
) -> LossOutput:
    """Mean ((1/η) Σ_i Δρ_i − ΔA)² over pairs of branches; the larger of that and of its clipped form, if ε > 0.

    ρ_i = ℓ_i(θ) − ℓ_i(old); the clipped form clamps each ρ_i to ± ε first.

    Args:
        log_prob: ℓ(θ), mean over latent elements, [B, K, T].
        old_log_prob: ℓ(old), [B, K, T].
        advantage: A of the whole trajectory, [B, K].
        mask: 1 for steps that count, else 0, [T].
        log_ratio_scale: η, positive.
        clip_range: ε; 0 switches the clipped term off (REBEL).

    Returns:
        The scalar loss with metrics `loss`, `clip_fraction` (share of pairs whose clipped term exceeds the unclipped
        one), `log_ratio_difference` (mean |Σ_i Δρ_i|) and `approx_kl` (mean ρ²/2 of a step).
    """
    log_ratio = (log_prob - old_log_prob) * mask.to(log_prob.dtype)
    target = branch_pairs(advantage)  # [B, P]
    difference = branch_pairs(log_ratio.sum(-1))
    error = (difference / log_ratio_scale - target).square()
    worst, clipped_more = error, torch.zeros_like(error)
    if clip_range > 0:
        clipped = branch_pairs(log_ratio.clamp(-clip_range, clip_range).sum(-1))
        clipped_error = (clipped / log_ratio_scale - target).square()
        worst = torch.maximum(error, clipped_error)
        clipped_more = (clipped_error > error).float()
    loss = worst.mean()
    metrics = {
        "loss": loss,
        "clip_fraction": clipped_more.mean(),
        "log_ratio_difference": difference.abs().mean(),
        "approx_kl": 0.5 * log_ratio.square().sum() / (mask.sum().clamp(min=1) * log_ratio[..., 0].numel()),
    }
    return LossOutput(loss, {name: value.detach() for name, value in metrics.items()})


@dataclass(frozen=True)
class REBEL(Algorithm[TrajectoryBatch]):
    """`regression_loss` on the final image's reward; the default does not clip, as published.

    Attributes:
        log_ratio_scale: η, positive: the log-ratio difference is divided by this.
        clip_range: ε, the clip range of every step's log-ratio; 0 switches the clipped term off.
    """

    takes_trajectories: ClassVar[bool] = True
    min_branches: ClassVar[int] = 2

    log_ratio_scale: float = 1.0
    clip_range: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "log_ratio_scale")
        check_clip_range(self.clip_range)

    def loss(self, batch: TrajectoryBatch) -> LossOutput:
        """Compute `regression_loss` with these settings."""
        return regression_loss(
            batch.log_prob,
            batch.old_log_prob,
            batch.advantage,
            batch.mask,
            log_ratio_scale=self.log_ratio_scale,
            clip_range=self.clip_range,
        )
