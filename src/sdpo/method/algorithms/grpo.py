"""GRPO for diffusion: Flow-GRPO (Liu et al. 2025, arXiv 2505.05470), DanceGRPO (Xue et al. 2025, arXiv 2505.07818).

The objective is DDPO's clipped ratio. The advantage differs: (R − mean) / std over the K branches of one prompt, which
needs neither a history nor a value function.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sdpo.method.advantages import GroupNormalizer, Normalizer
from sdpo.method.algorithms.ddpo import DDPO


@dataclass(frozen=True)
class GRPO(DDPO):
    """DDPO's objective with group-relative advantages; the defaults are DanceGRPO's groups of 12 on one starting noise.

    Flow-GRPO uses groups of 24, a starting noise for each branch (`sample.shared_noise: false`), and a KL penalty to
    the base model (`train.kl_weight`).
    """

    min_branches: ClassVar[int] = 2
    normalizer: ClassVar[type[Normalizer] | None] = GroupNormalizer

    branches: int = 12
