"""Pixels against what the reward models' own transforms made of six images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from sdpo.rewards.models.pixels import MEAN, STD, Fit, model_pixels

GOLDEN = np.load(Path(__file__).parent / "preprocess.npz")
NAMES = sorted(key.removeprefix("image/") for key in GOLDEN.files if key.startswith("image/"))


def image(name: str) -> Tensor:
    return torch.from_numpy(GOLDEN[f"image/{name}"]).permute(2, 0, 1)[None].float() / 255


def levels(pixels: Tensor) -> Tensor:
    """Back to 0 … 255."""
    mean, std = (torch.tensor(v).reshape(3, 1, 1) for v in (MEAN, STD))
    return (pixels[0] * std + mean) * 255


def expected(name: str, fit: Fit) -> Tensor:
    key = f"hf/{name}" if fit == "hf" and f"hf/{name}" in GOLDEN.files else f"clip/{name}"
    return torch.from_numpy(GOLDEN[key]).permute(2, 0, 1).float()


@pytest.mark.parametrize("fit", ["clip", "hf"])
@pytest.mark.parametrize("name", NAMES)
def test_short_side_and_crop(name: str, fit: Fit) -> None:
    official = expected(name, fit)
    difference = (levels(model_pixels(image(name), fit=fit, resize="pil")) - official).abs()
    assert difference.max() < 2.01
    assert (difference < 0.01).float().mean() >= 0.98
    assert (levels(model_pixels(image(name), fit=fit, resize="float")) - official).abs().mean() <= 0.5


@pytest.mark.parametrize("name", NAMES)
def test_long_side_and_padding(name: str) -> None:
    official = torch.from_numpy(GOLDEN[f"hpsv2/{name}"]).float()
    assert (model_pixels(image(name), fit="pad")[0] - official).abs().max() <= 2e-3
