"""An algorithm of reward gradients outside the package; docs/extend.md explains it.

From this folder:

    sdpo train emoji-gradient algorithm=own_gradient:EndsFirst --output-dir runs/own
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sdpo import RewardGradient, Term


@dataclass(frozen=True, kw_only=True)
class EndsFirst(RewardGradient):
    """Rewards the first and the last step's image, and the final one back to the starting noise."""

    share: float = 0.5  # the weight of the first step's image

    def terms(self, num_steps: int, generator: torch.Generator) -> list[Term]:
        """One term an image; `through` counts the network evaluations that the gradient passes."""
        last = Term(num_steps - 1, 1 - self.share, through=num_steps)
        return [Term(0, self.share), last] if num_steps > 1 else [Term(0, 1.0)]
