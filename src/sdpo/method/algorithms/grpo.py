"""GRPO for diffusion: Flow-GRPO (Liu et al. 2025, arXiv 2505.05470), DanceGRPO (Xue et al. 2025, arXiv 2505.07818).

The objective is DDPO's clipped ratio. What differs is the advantage, (R − mean) / std over the K branches of one
prompt, which needs neither a history nor a value function.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from sdpo.method.algorithms.base import check_fields
from sdpo.method.algorithms.ddpo import DDPO


@dataclass(frozen=True)
class GRPO(DDPO):
    """DanceGRPO's setting: groups of 12 on one starting noise; see `clipped_ratio_loss` for the other fields.

    Flow-GRPO uses 24 and a starting noise for each (`sample.shared_noise: false`), and KL to the base model
    (`train.kl_weight`).
    """

    normalizer: ClassVar[Literal["group"] | None] = "group"

    branches: int = 12

    def __post_init__(self) -> None:
        check_fields(self, "grpo", branches=2)
