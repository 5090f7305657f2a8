"""Learning algorithms, one small file each. The section `algorithm` of a configuration sets their fields."""

from typing import Any

from sdpo.method.algorithms.base import Algorithm
from sdpo.method.algorithms.d3po import D3PO
from sdpo.method.algorithms.ddpo import DDPO
from sdpo.method.algorithms.draft import DRaFT
from sdpo.method.algorithms.grpo import GRPO
from sdpo.method.algorithms.hybrid import Hybrid
from sdpo.method.algorithms.prdp import PRDP
from sdpo.method.algorithms.rebel import REBEL
from sdpo.method.algorithms.refl import ReFL
from sdpo.method.algorithms.reward_gradient import RewardGradient
from sdpo.method.algorithms.sdpo import SDPO, sdpo_loss
from sdpo.method.algorithms.srg import SRG

AnyAlgorithm = Algorithm[Any] | RewardGradient | Hybrid
"""An algorithm of policy updates, of reward gradients, or of both."""

KINDS: tuple[type[AnyAlgorithm], ...] = (Algorithm, RewardGradient, Hybrid)
"""The classes from which algorithms are derived."""

POLICY_ALGORITHMS: dict[str, type[Algorithm[Any]]] = {
    "sdpo": SDPO,
    "ddpo": DDPO,
    "d3po": D3PO,
    "rebel": REBEL,
    "prdp": PRDP,
    "grpo": GRPO,
}
"""Algorithms that learn from the scores of sampled trajectories."""

GRADIENT_ALGORITHMS: dict[str, type[RewardGradient]] = {"srg": SRG, "draft": DRaFT, "refl": ReFL}
"""Algorithms that follow the reward's own gradient."""

ALGORITHMS: dict[str, type[AnyAlgorithm]] = {**POLICY_ALGORITHMS, **GRADIENT_ALGORITHMS, "hybrid": Hybrid}

__all__ = [
    "ALGORITHMS",
    "D3PO",
    "DDPO",
    "GRADIENT_ALGORITHMS",
    "GRPO",
    "KINDS",
    "POLICY_ALGORITHMS",
    "PRDP",
    "REBEL",
    "SDPO",
    "SRG",
    "Algorithm",
    "AnyAlgorithm",
    "DRaFT",
    "Hybrid",
    "ReFL",
    "RewardGradient",
    "sdpo_loss",
]
