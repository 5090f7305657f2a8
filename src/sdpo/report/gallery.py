"""The images of a run: an evaluation's picture is cut into tiles, one per prompt and seed."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from sdpo.report.reader import Run

MOST_TILES = 12  # in a row
_PIXEL_ART = 128  # tiles of up to this many pixels are shown pixel by pixel
_LARGEST = 256  # larger tiles are reduced to this many pixels


@dataclass(frozen=True)
class StepImages:
    """The images at one number of steps, in the order of the evaluations' prompts and seeds.

    Attributes:
        steps: number of sampling steps.
        before: tiles of the base model; may be empty.
        after: tiles of the tuned model; may be empty.
    """

    steps: int
    before: list[Image.Image]
    after: list[Image.Image]


@dataclass(frozen=True)
class HtmlImage:
    """An image that is embedded in a page.

    Attributes:
        source: a `data:` address.
        alt: text in place of the image.
        pixel_art: whether the pixels stay sharp where the page enlarges the image.
    """

    source: str
    alt: str
    pixel_art: bool


def gallery(run: Run) -> list[StepImages]:
    """Return the base and the tuned model's images at each number of steps that has any."""
    first = run.base.strips if run.base else {}
    last = run.tuned.strips if run.tuned else {}
    found = []
    for steps in sorted(first.keys() | last.keys()):
        before, after = (cut_tiles(strips[steps]) if steps in strips else [] for strips in (first, last))
        if before or after:
            found.append(StepImages(steps, before, after))
    return found


def cut_tiles(strip: Path, limit: int = MOST_TILES) -> list[Image.Image]:
    """Cut the first square tiles from a horizontal strip.

    Args:
        strip: the picture's file.
        limit: the largest number of tiles to return.

    Returns:
        The tiles; none if the file cannot be read, as while it is being written.
    """
    try:
        with Image.open(strip) as opened:
            image = opened.convert("RGB")
    except (OSError, ValueError, SyntaxError):  # Pillow raises any of these for a truncated or broken file
        return []
    side = image.height
    return [image.crop((i * side, 0, (i + 1) * side, side)) for i in range(min(limit, image.width // side))]


def is_pixel_art(tile: Image.Image) -> bool:
    """Whether a tile is so small that it is shown pixel by pixel."""
    return tile.height <= _PIXEL_ART


def reduced(tile: Image.Image) -> Image.Image:
    """Return a tile of at most 256 pixels."""
    return tile.resize((_LARGEST, _LARGEST), Image.Resampling.LANCZOS) if tile.height > _LARGEST else tile


def html_image(tile: Image.Image, alt: str) -> HtmlImage:
    """Embed a tile: pixel art as PNG, larger tiles as JPEG of at most 256 pixels."""
    buffer = io.BytesIO()
    if is_pixel_art(tile):
        tile.save(buffer, "PNG", optimize=True)
        kind = "png"
    else:
        reduced(tile).save(buffer, "JPEG", quality=88)
        kind = "jpeg"
    source = f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
    return HtmlImage(source, alt, is_pixel_art(tile))
