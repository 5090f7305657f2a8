"""Colourfulness (Hasler & Süsstrunk 2003, "Measuring colourfulness in natural images"): needs no weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def colorfulness(images: Tensor) -> Tensor:
    """M = √(σ_rg² + σ_yb²) + 0.3 √(μ_rg² + μ_yb²) with rg = R − G, yb = (R + G)/2 − B on the 0 … 255 scale.

    Args:
        images: [N, 3, H, W] in [0, 1].

    Returns:
        float32 [N]; M is 0 for greys, 109 for what the paper calls extremely colourful.
    """
    red, green, blue = (images.float().clamp(0, 1) * 255).flatten(2).unbind(1)  # each [N, H·W]
    rg, yb = red - green, (red + green) / 2 - blue
    spread = (rg.var(1, correction=0) + yb.var(1, correction=0)).sqrt()
    level = (rg.mean(1).square() + yb.mean(1).square()).sqrt()
    return spread + 0.3 * level


class Colorfulness:
    """The paper's M."""

    def __init__(self, device: str = "cpu") -> None:
        del device  # computed where the images are

    def __call__(self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> Tensor:
        """M, [N]."""
        with torch.no_grad():
            return colorfulness(images)
