"""D3PO: preferences between branches, step by step, without a reward model (Yang et al. 2023, arXiv 2311.13231)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from sdpo.method.algorithms.base import Algorithm, branch_pairs, check_clip_range, check_positive
from sdpo.method.lazy_torch import torch
from sdpo.method.types import LossOutput, StepBatch

if TYPE_CHECKING:
    from torch import Tensor


def preference_loss(
    log_prob: Tensor,
    reference_log_prob: Tensor,
    advantage: Tensor,
    mask: Tensor,
    *,
    beta: float,
    clip_range: float = 0.0,
) -> LossOutput:
    """Mean −log σ(β [log r_w − log r_l]) over pairs of a better branch w and a worse one l, r = exp(ℓ(θ) − ℓ(ref)).

    Each ratio r is clamped to 1 ± ε first, so that a branch whose ratio has left the range has no gradient. Pairs of
    equal advantage express no preference and contribute 0. With more than two branches all pairs have the same weight.

    Args:
        log_prob: ℓ(θ), mean over latent elements, [B, K].
        reference_log_prob: ℓ(ref), of the base model, [B, K].
        advantage: [B, K]; the order of advantages within a pair is the preference.
        mask: 1 for steps that have a density, else 0, [B].
        beta: β, how strongly the policy is held to the base model.
        clip_range: ε, below 1; 0 switches clamping off.

    Returns:
        The scalar loss with metrics `loss`, `clip_fraction` (share of branches whose ratio is outside the range),
        `preference_accuracy` (share of ordered pairs that the policy, relative to the base model, orders in the same
        way) and `log_ratio_difference` (mean |Δ(ℓ(θ) − ℓ(ref))|).
    """
    preference = branch_pairs(advantage).sign()  # [B, P]; 1 where the first of the pair is better
    log_ratio = log_prob - reference_log_prob
    margin = preference * branch_pairs(log_ratio)
    use = preference.abs() * mask[:, None].to(margin.dtype)
    clamped, outside = log_ratio, torch.zeros_like(log_ratio)
    if clip_range > 0:
        low, high = math.log1p(-clip_range), math.log1p(clip_range)
        clamped = log_ratio.clamp(low, high)  # the logarithm of the clamped ratio, whose gradient is the same
        outside = ((log_ratio < low) | (log_ratio > high)).to(log_ratio.dtype)
    loss = (-torch.nn.functional.logsigmoid(beta * preference * branch_pairs(clamped)) * use).mean()
    metrics = {
        "loss": loss,
        "clip_fraction": (outside * mask[:, None].to(outside.dtype)).mean(),
        "preference_accuracy": ((margin > 0) * use).sum() / use.sum().clamp(min=1),
        "log_ratio_difference": (margin.abs() * use).mean(),
    }
    return LossOutput(loss, {name: value.detach() for name, value in metrics.items()})


@dataclass(frozen=True)
class D3PO(Algorithm[StepBatch]):
    """`preference_loss` on the final image's reward; the defaults are those of the authors' code.

    It averages the gradients of all steps before an optimizer step. The reference is the model that `train.reference`
    names: the base model, or the one that the run starts from.

    Attributes:
        beta: β, positive.
        clip_range: ε, to which each ratio's distance from 1 is clamped, below 1; 0 switches clamping off.
    """

    accumulates: ClassVar[int | Literal["all"]] = "all"
    needs_reference: ClassVar[bool] = True
    min_branches: ClassVar[int] = 2

    beta: float = 0.1
    clip_range: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "beta")
        check_clip_range(self.clip_range)
        if self.clip_range >= 1:
            raise ValueError("algorithm.clip_range must be below 1: it is the distance of a ratio from 1")

    def loss(self, batch: StepBatch) -> LossOutput:
        """Compute `preference_loss` with these settings."""
        assert batch.reference_log_prob is not None, "the update provides it where needs_reference is true"
        return preference_loss(
            batch.log_prob,
            batch.reference_log_prob,
            batch.advantage,
            batch.mask,
            beta=self.beta,
            clip_range=self.clip_range,
        )
