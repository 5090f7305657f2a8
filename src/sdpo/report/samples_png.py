"""`samples.png`: the base model's images above the tuned model's, at each number of steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
from PIL import Image, ImageDraw, ImageFont

from sdpo.report.formatting import step_label
from sdpo.report.gallery import StepImages, gallery, is_pixel_art, reduced
from sdpo.report.reader import Run

_LABEL_WIDTH = 92  # of the column that names the rows
_GAP = 6  # pixels between tiles
_LINE = 14  # height of a caption's line
_NARROWEST = 72  # of a column, so that captions have room
_INK, _GREY, _FRAME = "#1d2126", "#636a72", "#e1e4e7"


@dataclass(frozen=True)
class _Columns:
    """The columns of the picture.

    Attributes:
        count: how many there are.
        side: width and height of the largest tile.
        pitch: distance from one column to the next.
    """

    count: int
    side: int
    pitch: int

    @classmethod
    def fit(cls, rows: Sequence[StepImages]) -> _Columns:
        """Choose columns that hold all tiles."""
        side = max(_enlarged(t).height for row in rows for t in row.before + row.after)
        return cls(max(max(len(row.before), len(row.after)) for row in rows), side, max(side, _NARROWEST) + _GAP)

    def left(self, index: int) -> int:
        """Return the left edge of a column."""
        return _LABEL_WIDTH + index * self.pitch


def draw_samples(run: Run, path: Path) -> None:
    """Write the picture, or one that says that there are no samples yet.

    Args:
        run: the run.
        path: the PNG file to write.
    """
    rows = gallery(run)
    if not rows:
        _draw_remark(path, "No samples yet: this run has not been evaluated.")
        return
    columns, small = _Columns.fit(rows), _font(11)
    evaluation = run.tuned or run.base
    prompts = evaluation.seen.prompts[: columns.count] if evaluation else []
    captions = [_wrap(prompt, small, columns.pitch - _GAP) for prompt in prompts]
    top = 12 + _LINE * max((len(lines) for lines in captions), default=0)
    heights = [sum(columns.side + _GAP for tiles in (row.before, row.after) if tiles) + _LINE for row in rows]
    canvas = Image.new("RGB", (columns.left(columns.count) + _GAP, top + sum(heights)), "white")
    draw = ImageDraw.Draw(canvas)
    for column, lines in enumerate(captions):
        for i, line in enumerate(lines):
            draw.text((columns.left(column), 6 + _LINE * i), line, font=small, fill=_GREY)
    tuned = f"tuned,\nepoch {run.tuned.epoch}" if run.tuned else ""
    for row, height in zip(rows, heights, strict=True):
        _draw_step(canvas, row, top, columns, tuned)
        top += height
    canvas.save(path)


def _draw_step(canvas: Image.Image, row: StepImages, top: int, columns: _Columns, tuned: str) -> None:
    """Draw one number of steps: its name, and the tiles of the base above those of the tuned model."""
    draw = ImageDraw.Draw(canvas)
    middle = columns.side / 2
    draw.text((8, top + middle - 17), step_label(row.steps), font=_font(13), fill=_INK)
    for label, tiles in (("base", row.before), (tuned, row.after)):
        if not tiles:
            continue
        draw.text((8, top + middle), label, font=_font(11), fill=_GREY)
        for column, tile in enumerate(tiles):
            shown, left = _enlarged(tile), columns.left(column)
            # A frame around the tile, not on it: images on white would have no visible edge.
            draw.rectangle((left - 1, top - 1, left + shown.width, top + shown.height), outline=_FRAME)
            canvas.paste(shown, (left, top))
        top += columns.side + _GAP


def _enlarged(tile: Image.Image) -> Image.Image:
    """Return pixel art at twice its size, pixel by pixel, and other tiles at no more than 256 pixels."""
    if is_pixel_art(tile):
        return tile.resize((tile.width * 2, tile.height * 2), Image.Resampling.NEAREST)
    return reduced(tile)


def _font(size: int) -> ImageFont.FreeTypeFont:
    # Prompts are the user's, and matplotlib's font has far more characters than Pillow's default one.
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), size)


def _wrap(text: str, font: ImageFont.FreeTypeFont, width: int, limit: int = 3) -> list[str]:
    """Break a caption into at most `limit` lines of at most `width` pixels; an ellipsis stands for the rest."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    more = len(lines) > limit
    return [_shorten(line, font, width, more and i == limit - 1) for i, line in enumerate(lines[:limit])]


def _shorten(line: str, font: ImageFont.FreeTypeFont, width: int, more: bool) -> str:
    shown = line + ("…" if more else "")
    while line and font.getlength(shown) > width:
        line = line[:-1]
        shown = line + "…"
    return shown


def _draw_remark(path: Path, text: str) -> None:
    canvas = Image.new("RGB", (640, 160), "white")
    ImageDraw.Draw(canvas).text((24, 70), text, font=_font(14), fill=_GREY)
    canvas.save(path)
