"""Random views of images, over which a reward is averaged: an error of the reward rarely survives all of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from sdpo.method.lazy_torch import torch

if TYPE_CHECKING:
    from torch import Generator, Tensor


@dataclass(frozen=True)
class Augment:
    """Random crops, flips and noise.

    Attributes:
        copies: random views of each image; the reward is averaged over them. 1 with the other fields at their
            defaults rewards the image itself.
        crop: the smallest side of a crop as a share of the image's side, in (0, 1]; each crop is resized to the
            image's size. 1 does not crop.
        flip: whether half of the views are mirrored left to right.
        noise: the standard deviation of pixel noise, where pixels are in 0 … 1.

    Raises:
        ValueError: if a field is out of its range.
    """

    copies: int = 1
    crop: float = 1.0
    flip: bool = False
    noise: float = 0.0

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}  # a configuration's misspelt key is an error

    def __post_init__(self) -> None:
        if not 1 <= self.copies <= 64:
            raise ValueError(f"copies must be in 1 … 64, got {self.copies}")
        if not 0 < self.crop <= 1:
            raise ValueError(f"crop must be in (0, 1], got {self.crop}")
        if not 0 <= self.noise <= 1:
            raise ValueError(f"noise must be in 0 … 1, got {self.noise}")
        if self.copies > 1 and self.is_identity:
            raise ValueError("copies above 1 need crop below 1, flip, or noise: else all views are the image itself")

    @property
    def is_identity(self) -> bool:
        """Whether every view is the image itself."""
        return self.crop == 1 and not self.flip and self.noise == 0

    def __call__(self, images: Tensor, generators: list[Generator]) -> Tensor:
        """Draw the views of N images; the gradient passes through them.

        Args:
            images: float [N, 3, H, W] in [0, 1].
            generators: N generators on the CPU, so that the views of an image do not depend on its batch.

        Returns:
            The views, float [N · copies, 3, H, W] in [0, 1]; those of one image are neighbours.
        """
        if self.is_identity:
            return images
        pairs = zip(images, generators, strict=True)
        return torch.stack([self._view(image, generator) for image, generator in pairs for _ in range(self.copies)])

    def _view(self, image: Tensor, generator: Generator) -> Tensor:
        side, top, left, mirrored = torch.rand(4, generator=generator).tolist()
        if self.crop < 1:
            image = _resized_crop(image, self.crop + (1 - self.crop) * side, top, left)
        if self.flip and mirrored < 0.5:
            image = image.flip(-1)
        if self.noise > 0:
            noise = torch.randn(image.shape, generator=generator)
            image = (image + self.noise * noise.to(image.device)).clamp(0, 1)
        return image


def _resized_crop(image: Tensor, side: float, top: float, left: float) -> Tensor:
    """Crop a share `side` of an image [3, H, W] and resize the crop to the image's size.

    Args:
        image: the image.
        side: the side of the crop as a share of the image's side.
        top: the place of the crop, from 0 at the top to 1 at the bottom.
        left: the place of the crop, from 0 at the left to 1 at the right.
    """
    height, width = image.shape[-2:]
    rows, columns = max(1, round(side * height)), max(1, round(side * width))
    y, x = round(top * (height - rows)), round(left * (width - columns))
    crop = image[None, :, y : y + rows, x : x + columns]
    resized = torch.nn.functional.interpolate(crop, (height, width), mode="bilinear", align_corners=False)
    return resized[0]
