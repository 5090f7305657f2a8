"""D3PO: preferences between branches, step by step, without a reward model (Yang et al. 2023, arXiv 2311.13231)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from sdpo.method.algorithms.base import Algorithm, branch_pairs, check_positive
from sdpo.method.lazy_torch import torch
from sdpo.method.types import LossOutput, StepBatch

if TYPE_CHECKING:
    from torch import Tensor


def preference_loss(
    log_prob: Tensor, reference_log_prob: Tensor, advantage: Tensor, mask: Tensor, *, beta: float
) -> LossOutput:
    """Mean −log σ(β [(ℓ_w(θ) − ℓ_w(ref)) − (ℓ_l(θ) − ℓ_l(ref))]) over pairs of a better branch w and a worse one l.

    Pairs of equal advantage express no preference and contribute 0. With more than two branches all pairs have the same
    weight.

    Args:
        log_prob: ℓ(θ), mean over latent elements, [B, K].
        reference_log_prob: ℓ(ref), of the base model, [B, K].
        advantage: [B, K]; the order of advantages within a pair is the preference.
        mask: 1 for steps that have a density, else 0, [B].
        beta: β, how strongly the policy is held to the base model.

    Returns:
        The scalar loss with metrics `loss`, `clip_fraction` (0: nothing is clipped), `preference_accuracy` (share of
        ordered pairs that the policy, relative to the base model, orders in the same way) and `log_ratio_difference`
        (mean |Δ(ℓ(θ) − ℓ(ref))|).
    """
    preference = branch_pairs(advantage).sign()  # [B, P]; 1 where the first of the pair is better
    margin = preference * branch_pairs(log_prob - reference_log_prob)
    use = preference.abs() * mask[:, None].to(margin.dtype)
    loss = (-torch.nn.functional.logsigmoid(beta * margin) * use).mean()
    metrics = {
        "loss": loss,
        "clip_fraction": torch.zeros_like(loss),
        "preference_accuracy": ((margin > 0) * use).sum() / use.sum().clamp(min=1),
        "log_ratio_difference": (margin.abs() * use).mean(),
    }
    return LossOutput(loss, {name: value.detach() for name, value in metrics.items()})


@dataclass(frozen=True)
class D3PO(Algorithm[StepBatch]):
    """`preference_loss` on the final image's reward; the default β is the published one.

    The base model is the network without its LoRA, or a frozen copy of all weights.

    Attributes:
        beta: β, positive.
    """

    needs_reference: ClassVar[bool] = True
    min_branches: ClassVar[int] = 2

    beta: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "beta")

    def loss(self, batch: StepBatch) -> LossOutput:
        """Compute `preference_loss` with these settings."""
        assert batch.reference_log_prob is not None, "the update provides it where needs_reference is true"
        return preference_loss(batch.log_prob, batch.reference_log_prob, batch.advantage, batch.mask, beta=self.beta)
