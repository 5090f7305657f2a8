"""The size as JPEG (DDPO, Black et al. 2023, arXiv 2305.13301, section 5), which needs no weights."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

_QUALITY = 95


def jpeg_kilobytes(images: Tensor) -> Tensor:
    """Compute the size of images as JPEG of quality 95.

    Args:
        images: float [N, 3, H, W] in [0, 1].

    Returns:
        Kilobytes (1000 bytes), float32 [N], on the CPU.
    """
    pixels = (images.detach().float().clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return torch.tensor([_encoded_size(np.ascontiguousarray(p)) / 1000 for p in pixels], dtype=torch.float32)


def _encoded_size(pixels: np.ndarray) -> int:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="JPEG", quality=_QUALITY)
    return buffer.tell()


class JpegIncompressibility:
    """Scores images by their size as JPEG: larger files are better.

    Args:
        device: ignored: the images are encoded on the CPU.
    """

    def __init__(self, device: str = "cpu") -> None:
        del device

    def __call__(self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> Tensor:
        """Score images by their size as JPEG.

        Args:
            images: float [N, 3, H, W] in [0, 1].
            prompts: ignored.
            metadata: ignored.

        Returns:
            Kilobytes, float32 [N].
        """
        return jpeg_kilobytes(images)


class JpegCompressibility:
    """Scores images by their size as JPEG: smaller files are better.

    Args:
        device: ignored: the images are encoded on the CPU.
    """

    def __init__(self, device: str = "cpu") -> None:
        del device

    def __call__(self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> Tensor:
        """Score images by minus their size as JPEG.

        Args:
            images: float [N, 3, H, W] in [0, 1].
            prompts: ignored.
            metadata: ignored.

        Returns:
            Minus the kilobytes, float32 [N].
        """
        return -jpeg_kilobytes(images)
