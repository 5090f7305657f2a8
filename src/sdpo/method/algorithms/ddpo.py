"""DDPO, importance-sampled (Black et al. 2023, arXiv 2305.13301, equation 6 with PPO's clipping)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from sdpo.method.algorithms.base import Algorithm, check_clip_range, check_positive
from sdpo.method.lazy_torch import torch
from sdpo.method.types import LossOutput, StepBatch

if TYPE_CHECKING:
    from torch import Tensor


def clipped_ratio_loss(
    log_prob: Tensor, old_log_prob: Tensor, advantage: Tensor, mask: Tensor, *, clip_range: float, advantage_clip: float
) -> LossOutput:
    """Mean max(−A r, −A clip(r, 1 ± ε)) with r = exp(ℓ(θ) − ℓ(old)), over all branches.

    Args:
        log_prob: ℓ(θ), mean over latent elements, [B, K].
        old_log_prob: ℓ(old), [B, K].
        advantage: A, [B, K].
        mask: 1 for steps that have a density, else 0, [B].
        clip_range: ε; 0 switches clipping off.
        advantage_clip: the largest |A|; advantages are clamped to ± this value.

    Returns:
        The scalar loss with metrics `loss`, `clip_fraction` (share of samples whose ratio left the range to the side
        that the advantage favours, so that they have no gradient), `advantage_clip_fraction` and `approx_kl` (mean
        ρ²/2).
    """
    clipped_advantage = advantage.clamp(-advantage_clip, advantage_clip)
    log_ratio = log_prob - old_log_prob
    ratio = log_ratio.exp()
    surrogate = -clipped_advantage * ratio
    worst, clipped_more = surrogate, torch.zeros_like(surrogate)
    if clip_range > 0:
        clipped = -clipped_advantage * ratio.clamp(1 - clip_range, 1 + clip_range)
        worst = torch.maximum(surrogate, clipped)
        clipped_more = (clipped > surrogate).float()
    use = mask[:, None].to(worst.dtype)
    loss = (worst * use).mean()
    metrics = {
        "loss": loss,
        "clip_fraction": (clipped_more * use).mean(),
        "advantage_clip_fraction": (advantage.abs() > advantage_clip).float().mean(),
        "approx_kl": (0.5 * log_ratio.square() * use).mean(),
    }
    return LossOutput(loss, {name: value.detach() for name, value in metrics.items()})


@dataclass(frozen=True)
class DDPO(Algorithm[StepBatch]):
    """`clipped_ratio_loss` on the final image's reward; the defaults are those of the authors' code, ddpo-pytorch.

    It samples single trajectories, normalises rewards by each prompt's last returns (`advantage.normalizer: stepwise`),
    and averages the gradients of all steps before an optimizer step.

    Attributes:
        clip_range: ε, the clip range of the ratio; 0 switches clipping off.
        advantage_clip: the largest |A|.
    """

    accumulates: ClassVar[int | Literal["all"]] = "all"

    branches: int = 1
    clip_range: float = 1e-4
    advantage_clip: float = 5.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "advantage_clip")
        check_clip_range(self.clip_range)

    def loss(self, batch: StepBatch) -> LossOutput:
        """Compute `clipped_ratio_loss` with these settings."""
        return clipped_ratio_loss(
            batch.log_prob,
            batch.old_log_prob,
            batch.advantage,
            batch.mask,
            clip_range=self.clip_range,
            advantage_clip=self.advantage_clip,
        )
