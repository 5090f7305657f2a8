"""D3PO: preferences between branches, step by step, without a reward model (Yang et al. 2023, arXiv 2311.13231)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from sdpo.method.algorithms.base import Algorithm, Credit, RewardPlan, branch_pairs, check_fields
from sdpo.method.types import LossOutput, StepBatch


def preference_loss(
    log_prob: Tensor, reference_log_prob: Tensor, advantage: Tensor, mask: Tensor, *, beta: float
) -> LossOutput:
    """Mean −log σ(β [(ℓ_w(θ) − ℓ_w(ref)) − (ℓ_l(θ) − ℓ_l(ref))]) over pairs of a better branch w and a worse one l.

    Pairs of equal advantage say nothing and count 0. With more than two branches all pairs count alike.

    Args:
        log_prob: ℓ(θ), mean over latent elements, [B, K].
        reference_log_prob: ℓ(ref), of the base model, [B, K].
        advantage: whose order within a pair is the preference, [B, K].
        mask: 1 for steps that have a density, [B].
        beta: β, how strongly the policy is held to the base model.

    Returns:
        The scalar loss with metrics `loss`, `clip_fraction` (0: nothing is clipped), `preference_accuracy` (share of
        ordered pairs that the policy, relative to the base model, orders alike) and `log_ratio_difference` (mean
        |Δ(ℓ(θ) − ℓ(ref))|).
    """
    preference = branch_pairs(advantage).sign()  # [B, P]; 1 where the first of the pair is the better one
    margin = preference * branch_pairs(log_prob - reference_log_prob)
    use = preference.abs() * mask[:, None].to(margin.dtype)
    loss = (-F.logsigmoid(beta * margin) * use).mean()
    metrics = {
        "loss": loss,
        "clip_fraction": torch.zeros_like(loss),
        "preference_accuracy": ((margin > 0) * use).sum() / use.sum().clamp(min=1),
        "log_ratio_difference": (margin.abs() * use).mean(),
    }
    return LossOutput(loss, {name: value.detach() for name, value in metrics.items()})


@dataclass(frozen=True)
class D3PO(Algorithm[StepBatch]):
    """The published β; see `preference_loss`. The base model is the adapter off, or a frozen copy of all weights."""

    needs_reference: ClassVar[bool] = True

    beta: float = 0.1
    discount: float = 1.0
    reward_plan: RewardPlan = "final"
    branches: int = 2
    credit: Credit = "step"

    def __post_init__(self) -> None:
        check_fields(self, "d3po", branches=2)

    def loss(self, batch: StepBatch) -> LossOutput:
        """`preference_loss` with this setting."""
        assert batch.reference_log_prob is not None, "the update gives what needs_reference asks for"
        return preference_loss(batch.log_prob, batch.reference_log_prob, batch.advantage, batch.mask, beta=self.beta)
