"""The images of a run: cuts the evaluations' strips into tiles and lays base above tuned (`samples.png`)."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from html import escape
from pathlib import Path

import matplotlib
from PIL import Image, ImageDraw, ImageFont

from sdpo.report.looks import step_label
from sdpo.report.reader import Run, Split

COLUMNS = 12
_PIXEL_ART = 128  # tiles up to this size are shown pixel by pixel
_LARGEST = 256  # larger tiles are reduced to this size
_LABELS = 92  # width of the row labels of samples.png
_GAP = 6
_INK, _QUIET = "#1d2126", "#636a72"


@dataclass(frozen=True)
class Rows:
    """The tiles of one step count, base and tuned at the same prompts and seeds; either list may be empty."""

    steps: int
    before: list[Image.Image]
    after: list[Image.Image]


def gallery(run: Run) -> list[Rows]:
    """The tiles of each step count that has any, at most `COLUMNS` a row."""
    first = run.base.strips if run.base else {}
    last = run.tuned.strips if run.tuned else {}
    rows = []
    for steps in sorted(first.keys() | last.keys()):
        before, after = (cut(strips[steps]) if steps in strips else [] for strips in (first, last))
        if before or after:
            rows.append(Rows(steps, before, after))
    return rows


def shown_split(run: Run) -> Split | None:
    """The prompts and seeds that the tiles belong to."""
    evaluation = run.tuned or run.base
    return evaluation.seen if evaluation else None


def cut(strip: Path, limit: int = COLUMNS) -> list[Image.Image]:
    """The first square tiles of a horizontal strip; none if the file cannot be read (it may be being written)."""
    try:
        with Image.open(strip) as opened:
            image = opened.convert("RGB")
    except (OSError, ValueError, SyntaxError):  # what Pillow raises for a truncated or broken file
        return []
    side = image.height
    return [image.crop((i * side, 0, (i + 1) * side, side)) for i in range(min(limit, image.width // side))]


def data_uri(tile: Image.Image) -> str:
    """A tile as a `data:` address: PNG for pixel art, JPEG at no more than 256 pixels for what is larger."""
    buffer = io.BytesIO()
    if tile.height <= _PIXEL_ART:
        tile.save(buffer, "PNG", optimize=True)
        return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
    _shown(tile, double=False).save(buffer, "JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def image_tag(tile: Image.Image, alt: str) -> str:
    """A tile as an `<img>` that needs no file; pixel art stays sharp where a page enlarges it."""
    pixels = ' class="pixels"' if tile.height <= _PIXEL_ART else ""
    return f'<img{pixels} src="{data_uri(tile)}" alt="{escape(alt)}">'


def draw_samples(run: Run, path: Path) -> None:
    """Write the before/after grid: for each step count the base model's row above the tuned one's."""
    rows = gallery(run)
    if not rows:
        _note(path, "No samples yet: this run has not been evaluated.")
        return
    side = max(_shown(t).height for row in rows for t in row.before + row.after)
    columns = max(max(len(row.before), len(row.after)) for row in rows)
    pitch = max(side, 72) + _GAP
    split, font, small = shown_split(run), _font(13), _font(11)
    prompts = (split.prompts if split else [])[:columns]
    captions = [_wrap(prompt, small, pitch - _GAP) for prompt in prompts]
    head = 12 + 14 * max((len(lines) for lines in captions), default=0)
    heights = [sum(side + _GAP for tiles in (row.before, row.after) if tiles) + 14 for row in rows]
    canvas = Image.new("RGB", (_LABELS + columns * pitch + _GAP, head + sum(heights)), "white")
    draw = ImageDraw.Draw(canvas)
    for column, lines in enumerate(captions):
        for i, line in enumerate(lines):
            draw.text((_LABELS + column * pitch, 6 + 14 * i), line, font=small, fill=_QUIET)
    top, after = head, f"tuned,\nepoch {run.tuned.epoch}" if run.tuned else ""
    for row in rows:
        upper = top
        for label, tiles in (("base", row.before), (after, row.after)):
            if not tiles:
                continue
            if top == upper:
                draw.text((8, top + side / 2 - 17), step_label(row.steps), font=font, fill=_INK)
            draw.text((8, top + side / 2), label, font=small, fill=_QUIET)
            for column, tile in enumerate(tiles):
                shown, left = _shown(tile), _LABELS + column * pitch
                # A frame around the tile, not on it: images on white would have no visible edge.
                draw.rectangle((left - 1, top - 1, left + shown.width, top + shown.height), outline="#e1e4e7")
                canvas.paste(shown, (left, top))
            top += side + _GAP
        top += 14
    canvas.save(path)


def _shown(tile: Image.Image, *, double: bool = True) -> Image.Image:
    """Pixel art twice as large, pixel by pixel; large images reduced."""
    if tile.height <= _PIXEL_ART:
        return tile.resize((tile.width * 2, tile.height * 2), Image.Resampling.NEAREST) if double else tile
    if tile.height > _LARGEST:
        return tile.resize((_LARGEST, _LARGEST), Image.Resampling.LANCZOS)
    return tile


def _font(size: int) -> ImageFont.FreeTypeFont:
    # matplotlib's own font knows far more characters than Pillow's default one, and prompts are the user's.
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), size)


def _wrap(text: str, font: ImageFont.FreeTypeFont, width: int, limit: int = 3) -> list[str]:
    """Break a caption into at most `limit` lines that fit, the last with an ellipsis if there is more."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    more = len(lines) > limit
    return [_fit(line, font, width, more and i == limit - 1) for i, line in enumerate(lines[:limit])]


def _fit(line: str, font: ImageFont.FreeTypeFont, width: int, more: bool) -> str:
    shown = line + ("…" if more else "")
    while line and font.getlength(shown) > width:
        line = line[:-1]
        shown = line + "…"
    return shown


def _note(path: Path, text: str) -> None:
    canvas = Image.new("RGB", (640, 160), "white")
    ImageDraw.Draw(canvas).text((24, 70), text, font=_font(14), fill=_QUIET)
    canvas.save(path)
