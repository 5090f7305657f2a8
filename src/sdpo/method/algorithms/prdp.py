"""PRDP: reward differences predicted by log-ratios to the base model (Deng et al. 2024, arXiv 2402.08714).

The optimum of a reward with a KL penalty to π_ref has r(x) = β log π*(x)/π_ref(x) + const. for each prompt. PRDP
regresses differences of rewards on differences of log π_θ/π_ref, which REBEL measures against the policy that sampled
instead. The proximal update clips each step's log-ratio around the policy that sampled.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from sdpo.method.algorithms.base import Algorithm, branch_pairs, check_clip_range, check_positive
from sdpo.method.lazy_torch import torch
from sdpo.method.types import LossOutput, TrajectoryBatch

if TYPE_CHECKING:
    from torch import Tensor


def reward_difference_loss(
    log_prob: Tensor,
    old_log_prob: Tensor,
    reference_log_prob: Tensor,
    advantage: Tensor,
    mask: Tensor,
    *,
    log_ratio_scale: float,
    clip_range: float,
) -> LossOutput:
    """Mean max((1/η Σ_i Δr_i − ΔA)², (1/η Σ_i Δr_i^clip − ΔA)²) over pairs of branches.

    r_i = ℓ_i(θ) − ℓ_i(ref), and r_i^clip = clamp(ℓ_i(θ), ℓ_i(old) ± ε) − ℓ_i(ref): clipping is around the policy that
    sampled, regression against the reference model. η = 1/β in the paper's notation.

    Args:
        log_prob: ℓ(θ), mean over latent elements, [B, K, T].
        old_log_prob: ℓ(old), [B, K, T].
        reference_log_prob: ℓ(ref), [B, K, T].
        advantage: A of the whole trajectory, [B, K].
        mask: 1 for steps that count, else 0, [T].
        log_ratio_scale: η, positive.
        clip_range: ε; 0 switches the clipped term off.

    Returns:
        The scalar loss with metrics `loss`, `clip_fraction` (share of pairs whose clipped term exceeds the unclipped
        one), `log_ratio_difference` (mean |Σ_i Δr_i|), `approx_kl` (mean ρ²/2 of a step, ρ = ℓ(θ) − ℓ(old)) and
        `log_ratio_to_reference` (mean |r_i| of a step).
    """
    use = mask.to(log_prob.dtype)
    target = branch_pairs(advantage)  # [B, P]

    def total(log_ratio: Tensor) -> Tensor:
        return branch_pairs((log_ratio * use).sum(-1))

    difference = total(log_prob - reference_log_prob)
    error = (difference / log_ratio_scale - target).square()
    worst, clipped_more = error, torch.zeros_like(error)
    if clip_range > 0:
        clamped = log_prob.clamp(old_log_prob - clip_range, old_log_prob + clip_range)
        clipped_error = (total(clamped - reference_log_prob) / log_ratio_scale - target).square()
        worst = torch.maximum(error, clipped_error)
        clipped_more = (clipped_error > error).float()
    loss = worst.mean()
    steps = mask.sum().clamp(min=1) * log_prob[..., 0].numel()
    metrics = {
        "loss": loss,
        "clip_fraction": clipped_more.mean(),
        "log_ratio_difference": difference.abs().mean(),
        "approx_kl": 0.5 * ((log_prob - old_log_prob) * use).square().sum() / steps,
        "log_ratio_to_reference": ((log_prob - reference_log_prob) * use).abs().sum() / steps,
    }
    return LossOutput(loss, {name: value.detach() for name, value in metrics.items()})


@dataclass(frozen=True)
class PRDP(Algorithm[TrajectoryBatch]):
    """`reward_difference_loss` on the final image's reward, with clipping around the policy that sampled.

    The reference is the model that `train.reference` names.

    Attributes:
        log_ratio_scale: η = 1/β, positive: the log-ratio difference is divided by this.
        clip_range: ε, the distance of a step's log-probability from the sampling policy's; 0 switches clipping off.
    """

    takes_trajectories: ClassVar[bool] = True
    needs_reference: ClassVar[bool] = True
    min_branches: ClassVar[int] = 2

    log_ratio_scale: float = 1.0
    clip_range: float = 1e-4

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "log_ratio_scale")
        check_clip_range(self.clip_range)

    def loss(self, batch: TrajectoryBatch) -> LossOutput:
        """Compute `reward_difference_loss` with these settings."""
        assert batch.reference_log_prob is not None, "the update provides it where needs_reference is true"
        return reward_difference_loss(
            batch.log_prob,
            batch.old_log_prob,
            batch.reference_log_prob,
            batch.advantage,
            batch.mask,
            log_ratio_scale=self.log_ratio_scale,
            clip_range=self.clip_range,
        )
