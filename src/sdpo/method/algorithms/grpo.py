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
    """DDPO's objective with group-relative advantages; the defaults are DanceGRPO's: twelve branches on one noise.

    Flow-GRPO has `global_std: true`, groups of 24, a starting noise for each branch (`sample.shared_noise: false`), its
    own form of noise (`sample.noise_form: flow_grpo`) and a KL penalty (`train.kl_weight`, `train.kl_form: flow_grpo`).

    Attributes:
        global_std: whether returns are divided by the standard deviation of all returns of the epoch, + 10⁻⁴
            (Flow-GRPO), and not by that of each group's own.
        unbiased_std: whether the group's own standard deviation is the unbiased one, + 10⁻⁸ (DanceGRPO), and not the
            population's, + 10⁻⁶.
    """

    min_branches: ClassVar[int] = 2
    normalizer: ClassVar[type[Normalizer] | None] = GroupNormalizer

    branches: int = 12
    global_std: bool = False
    unbiased_std: bool = True

    def own_normalizer(self) -> Normalizer:
        """Build the normaliser of the group's returns."""
        if self.global_std:
            return GroupNormalizer(global_std=True, epsilon=1e-4)
        return GroupNormalizer(unbiased=True, epsilon=1e-8) if self.unbiased_std else GroupNormalizer()
