"""Direct Reward Fine-Tuning (Clark et al. 2023, arXiv 2309.17400): the final image's reward, through the last K steps.

With K = T it is also AlignProp (Prabhudesai et al. 2023, arXiv 2310.03739) without its random truncation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sdpo.method.algorithms.reward_gradient import RewardGradient, Term, check_at_least_one

if TYPE_CHECKING:
    from torch import Generator


@dataclass(frozen=True, kw_only=True)
class DRaFT(RewardGradient):
    """Maximises r(x̂_{T−1}), with the gradient through the last K network evaluations (DRaFT-K).

    Attributes:
        through: K; T or more passes back to the starting noise.
        low_variance: DRaFT-LV, for K = 1: the final image is noised again to the level of the last step this many
            times, and denoised; the reward is averaged over the image and these. 0 is DRaFT-1 itself; the authors
            use 2.

    Raises:
        ValueError: if a field is out of its range.
    """

    through: int = 1
    low_variance: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least_one(self, "through")
        if self.low_variance < 0:
            raise ValueError("algorithm.low_variance must be at least 0 (0 switches it off)")
        if self.low_variance and self.through > 1:
            raise ValueError("algorithm.low_variance is defined for algorithm.through=1 (DRaFT-LV)")

    def terms(self, num_steps: int, generator: Generator) -> list[Term]:
        """Reward the final image; see `RewardGradient.terms`."""
        return [Term(num_steps - 1, 1.0, min(self.through, num_steps), self.low_variance)]
