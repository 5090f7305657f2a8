"""The size of an image as JPEG."""

from __future__ import annotations

import io

import pytest
import torch
from PIL import Image

from sdpo.rewards import load_reward


def test_jpeg_size_is_that_of_a_real_file() -> None:
    torch.manual_seed(0)
    noise = torch.rand(1, 3, 32, 32)
    buffer = io.BytesIO()
    pixels = (noise[0] * 255).round().byte().permute(1, 2, 0).numpy()
    Image.fromarray(pixels).save(buffer, format="JPEG", quality=95)
    large = torch.as_tensor(load_reward("jpeg_incompressibility")(noise, [""], [{}]))
    small = torch.as_tensor(load_reward("jpeg_compressibility")(noise, [""], [{}]))
    assert large.item() == pytest.approx(len(buffer.getvalue()) / 1000) and small.item() == pytest.approx(-large.item())
