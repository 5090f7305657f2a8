"""JPEG size as a reward (DDPO, Black et al. 2023, arXiv 2305.13301, section 5): needs no weights."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

_QUALITY = 95


def jpeg_kilobytes(images: Tensor) -> Tensor:
    """Size as a JPEG of quality 95, in kB (1000 bytes), of images [N, 3, H, W] in [0, 1]; float32 [N]."""
    pixels = (images.detach().float().clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return torch.tensor([_encoded_size(np.ascontiguousarray(p)) / 1000 for p in pixels], dtype=torch.float32)


def _encoded_size(pixels: np.ndarray) -> int:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="JPEG", quality=_QUALITY)
    return buffer.tell()


class JpegIncompressibility:
    """Larger files are better."""

    def __init__(self, device: str = "cpu") -> None:
        del device  # encoding runs on the CPU

    def __call__(self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> Tensor:
        """Kilobytes, [N]."""
        return jpeg_kilobytes(images)


class JpegCompressibility:
    """Smaller files are better."""

    def __init__(self, device: str = "cpu") -> None:
        del device

    def __call__(self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> Tensor:
        """Minus the kilobytes, [N]."""
        return -jpeg_kilobytes(images)
