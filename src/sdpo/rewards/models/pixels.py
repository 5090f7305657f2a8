"""The preprocessing of images for a reward model: resized, cropped or padded, normalised, on the images' own device."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Fit = Literal["clip", "hf", "pad"]
Resize = Literal["float", "pil"]

# OpenAI CLIP's mean and standard deviation of red, green and blue, which all reward models here use.
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


def model_pixels(images: Tensor, size: int = 224, fit: Fit = "clip", resize: Resize = "float") -> Tensor:
    """Resize images to squares and normalise them.

    Args:
        images: float [N, 3, H, W] in [0, 1].
        size: side of the square, in pixels.
        fit: `clip` scales the short side and crops the centre as OpenAI CLIP and ImageReward do; `hf` does so as the
            transformers CLIP processor does (the crops differ by a pixel where the margin is odd); `pad` scales the
            long side and pads with black, as HPSv2 does.
        resize: `float` is bicubic with antialiasing, and differentiable. `pil` rounds to 256 levels as Pillow does,
            before and after the pass over the width and after the pass over the height; rounding has no gradient.

    Returns:
        Pixels, float32 [N, 3, size, size], normalised with CLIP's mean and standard deviation.
    """
    images = images.float()
    if resize == "pil":
        images = _round(images)
    images = _pad_to_square(images, size) if fit == "pad" else _crop_to_square(images, size, fit, resize)
    mean, std = (torch.tensor(v, device=images.device).reshape(3, 1, 1) for v in (MEAN, STD))
    return (images - mean) / std


def _crop_to_square(images: Tensor, size: int, fit: Fit, resize: Resize) -> Tensor:
    height, width = images.shape[-2:]
    short = min(height, width)
    new_height, new_width = (size if side == short else int(size * side / short) for side in (height, width))
    if resize == "pil":
        images = _round(_bicubic(images, height, new_width))
        images = _round(_bicubic(images, new_height, new_width))
    else:
        images = _bicubic(images, new_height, new_width).clamp(0, 1)  # bicubic overshoots
    # OpenAI's transform rounds half a pixel to even; the transformers processor rounds it down.
    top, left = (round((side - size) / 2) if fit == "clip" else (side - size) // 2 for side in (new_height, new_width))
    return images[..., top : top + size, left : left + size]


def _pad_to_square(images: Tensor, size: int) -> Tensor:
    scale = size / max(images.shape[-2:])
    height, width = (round(side * scale) for side in images.shape[-2:])
    images = _bicubic(images, height, width)  # HPSv2 does not clamp
    missing_height, missing_width = size - height, size - width
    top, left = missing_height // 2, missing_width // 2
    return F.pad(images, (left, missing_width - left, top, missing_height - top))


def _bicubic(images: Tensor, height: int, width: int) -> Tensor:
    if images.shape[-2:] == (height, width):
        return images
    return F.interpolate(images, (height, width), mode="bicubic", antialias=True)


def _round(images: Tensor) -> Tensor:
    """Round to the 256 levels of uint8, keeping the range [0, 1]."""
    return (images * 255).round().clamp(0, 255) / 255
