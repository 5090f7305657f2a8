"""Temporal importance weights (SDPO, arXiv 2411.11727)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def temporal_weights(step_index: Tensor, decay: float) -> Tensor:
    """λ^i: the noisiest step, which is the one-step sample, weighs most; float32, the shape of `step_index`."""
    return decay ** step_index.float()
