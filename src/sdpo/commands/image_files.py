"""Reads image files as rewards see images: upright, opaque, RGB in [0, 1]; what cannot be read so is refused."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from torch import Tensor

from sdpo.errors import UserError, cause

_DEEPEST = 65535  # white in 16 bits
_SIDEWAYS = {5, 6, 7, 8}  # values of the EXIF orientation that exchange width and height


class ReadImage(NamedTuple):
    """An image file's pixels.

    Attributes:
        pixels: float32 [3, H, W] in [0, 1].
        was_transparent: whether some pixels were transparent, and were put on white.
    """

    pixels: Tensor
    was_transparent: bool


def image_size(path: Path) -> tuple[int, int]:
    """The width and height of the upright image in a file, in pixels; the pixels themselves are not read.

    Raises:
        UserError: if the file cannot be read as one image.
    """
    with _opened(path) as image:
        width, height = image.size
        sideways = image.getexif().get(ExifTags.Base.Orientation) in _SIDEWAYS
        return (height, width) if sideways else (width, height)


def read_image(path: Path) -> ReadImage:
    """Read an image file.

    The orientation of the file's EXIF data is applied, transparent pixels are put on white, and grey, palette and CMYK
    images become RGB; colour profiles are ignored. Grey images of 16 bits keep all of them; Pillow reads the upper 8
    bits of each channel of other images.

    Raises:
        UserError: if the file cannot be read, or holds several images, more pixels than Pillow deems safe, or numbers
            without a known white, such as those of a float TIFF.
    """
    with _opened(path) as image:
        upright = ImageOps.exif_transpose(image)
        if upright.mode.startswith("I"):
            grey = np.asarray(upright).astype(np.float32) / _DEEPEST
            return ReadImage(torch.from_numpy(grey).expand(3, -1, -1), False)
        transparent = False
        if upright.has_transparency_data:
            layer = upright.convert("RGBA")
            transparent = np.asarray(layer)[..., 3].min() < 255
            upright = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
        pixels = torch.from_numpy(np.array(upright.convert("RGB")))
        return ReadImage(pixels.permute(2, 0, 1).float() / 255, transparent)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Open an image file, refuse what is no single image of known range, and explain every failure to read it.

    Raises:
        UserError: naming the file.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(path)
        with image:
            _check_single(path, image)
            _check_range(path, image)
            yield image
    except UserError:
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise UserError(
            f"{path} has too many pixels: images are read up to {Image.MAX_IMAGE_PIXELS:,}. Score a smaller version."
        ) from error
    except Exception as error:  # Pillow's readers raise errors of many classes for damaged files
        raise UserError(f"{path} cannot be read as an image: {cause(error)}") from error


def _check_single(path: Path, image: Image.Image) -> None:
    """Refuse animations and files of several pages; a camera's MPO holds a photograph first, and its previews."""
    count = getattr(image, "n_frames", 1)
    if count > 1 and image.format != "MPO":
        raise UserError(f"{path} holds {count} images (an animation or pages): save the one to score as a file")


def _check_range(path: Path, image: Image.Image) -> None:
    """Refuse numbers of which nothing says which of them is white."""
    deep = image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG")
    if image.mode == "F" or (image.mode.startswith("I") and not deep):
        raise UserError(f"{path} has pixels of 32 bits, whose white is not known: save it with 8 or 16 bits a channel")
    if deep and "transparency" in image.info:
        raise UserError(f"{path} is a 16-bit grey image with a transparent grey: save it without transparency")
