"""Images of the tuned model for an export, cut from the pictures of the run's evaluation."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from sdpo.report.gallery import cut_tiles, is_pixel_art
from sdpo.report.reader import Run

_MOST = 6  # pictures of an export
_SIDE = 512  # pixels a side of the largest picture
_THUMBNAIL = 256  # pixels a side


@dataclass(frozen=True)
class Picture:
    """An image that the tuned model drew.

    Attributes:
        prompt: the image's prompt.
        image: the image.
    """

    prompt: str
    image: Image.Image

    @property
    def thumbnail(self) -> str:
        """The image as a small JPEG in a `data:` address."""
        buffer = io.BytesIO()
        _resized(self.image, _THUMBNAIL).save(buffer, "JPEG", quality=80)
        return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"

    def save(self, path: Path) -> None:
        """Write the image as a PNG file."""
        _resized(self.image, _SIDE).save(path)


def choose_pictures(run: Run, steps: int) -> list[Picture]:
    """The first image of each of the first prompts, from the evaluation of the tuned model.

    Args:
        run: the run, without evaluations after the exported epoch.
        steps: number of sampling steps.

    Returns:
        The images; none where the tuned model was not evaluated at that number of steps.
    """
    if run.tuned is None or steps not in run.tuned.strips:
        return []
    found: dict[str, Picture] = {}
    for prompt, image in zip(run.tuned.seen.prompts, cut_tiles(run.tuned.strips[steps]), strict=False):
        found.setdefault(prompt, Picture(prompt, image))
    return list(found.values())[:_MOST]


def _resized(image: Image.Image, side: int) -> Image.Image:
    """Enlarge pixel art by a whole factor, and reduce larger images, to at most `side` pixels a side."""
    if is_pixel_art(image):
        factor = max(1, side // image.height)
        return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    return image.resize((side, side), Image.Resampling.LANCZOS) if image.height > side else image
