"""Colourfulness (Hasler & Süsstrunk 2003, "Measuring colourfulness in natural images"), which needs no weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def colorfulness(images: Tensor) -> Tensor:
    """Compute M = √(σ_rg² + σ_yb²) + 0.3 √(μ_rg² + μ_yb²) with rg = R − G, yb = (R + G)/2 − B on the 0 … 255 scale.

    Args:
        images: float [N, 3, H, W] in [0, 1].

    Returns:
        M, float32 [N]: 0 for greys, 109 for images that the paper calls extremely colourful.
    """
    red, green, blue = (images.float().clamp(0, 1) * 255).flatten(2).unbind(1)  # each [N, H·W]
    rg, yb = red - green, (red + green) / 2 - blue
    deviation = _root(rg.var(1, correction=0) + yb.var(1, correction=0))
    mean = _root(rg.mean(1).square() + yb.mean(1).square())
    return deviation + 0.3 * mean


def _root(values: Tensor) -> Tensor:
    """√x elementwise, with gradient 0 at 0, where that of √x is infinite: a grey image must not end a run."""
    positive = values > 0
    return torch.where(positive, torch.where(positive, values, 1.0).sqrt(), 0.0)


class Colorfulness:
    """Scores images by their colourfulness M.

    Args:
        device: ignored: the scores are computed on the device of the images.

    Attributes:
        differentiable: whether the scores have a gradient at the images.
    """

    differentiable = True

    def __init__(self, device: str = "cpu") -> None:
        del device

    def __call__(self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> Tensor:
        """Score images by their colourfulness.

        Args:
            images: float [N, 3, H, W] in [0, 1].
            prompts: ignored.
            metadata: ignored.

        Returns:
            Scores, float32 [N].
        """
        return colorfulness(images)
