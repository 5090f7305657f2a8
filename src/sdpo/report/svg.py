"""Line charts as inline SVG that take their colours from the page's CSS variables."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Protocol

from sdpo.report.looks import LOOKS, look, magnitude, superscript, tick_labels, ticks

WIDTH, HEIGHT = 360, 232
LEFT, RIGHT, TOP, BOTTOM = 46, 16, 26, 42
_MARKED = 32  # with more points than this a line has no markers: they would cover it


@dataclass(frozen=True)
class Series:
    """One line of a chart.

    Attributes:
        label: names it.
        xs: across, [P].
        ys: up, [P]; values that are not finite leave gaps.
        style: picks its colour, dash and marker; None is a plain line for a chart with only one.
        spread: half the height of a band around the line, [P]; None or values that are not finite draw none.
    """

    label: str
    xs: Sequence[float]
    ys: Sequence[float]
    style: int | None = None
    spread: Sequence[float] | None = None

    def band(self) -> list[tuple[float, float, float]]:
        """The band's (x, lower y, upper y) where it has one."""
        found = zip(self.xs, self.ys, self.spread or [], strict=self.spread is not None)
        return [(x, y - s, y + s) for x, y, s in found if math.isfinite(y) and math.isfinite(s)]


def marker(shape: str, x: float, y: float, size: float = 3.4) -> str:
    """The SVG element of a marker, `shape` in matplotlib's letters."""
    s = size
    if shape == "o":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{s}"/>'
    outlines = {
        "s": [(-s, -s), (s, -s), (s, s), (-s, s)],
        "^": [(0, -1.25 * s), (1.2 * s, s), (-1.2 * s, s)],
        "v": [(0, 1.25 * s), (1.2 * s, -s), (-1.2 * s, -s)],
        "D": [(0, -1.4 * s), (1.4 * s, 0), (0, 1.4 * s), (-1.4 * s, 0)],
        "<": [(-1.25 * s, 0), (s, -1.2 * s), (s, 1.2 * s)],
        ">": [(1.25 * s, 0), (-s, 1.2 * s), (-s, -1.2 * s)],
    }
    third = s / 2.5
    plus = [(-third, -s), (third, -s), (third, -third), (s, -third), (s, third), (third, third)]
    plus += [(third, s), (-third, s), (-third, third), (-s, third), (-s, -third), (-third, -third)]
    points = " ".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in outlines.get(shape, plus))
    return f'<polygon points="{points}"/>'


def legend(entries: Sequence[tuple[str, int]]) -> str:
    """An HTML legend of (label, style)."""
    items = []
    for label, style in entries:
        dash = f' stroke-dasharray="{look(style).dash}"' if look(style).dash else ""
        sample = f'<path class="line" d="M1 6H33"{dash}/>{marker(look(style).marker, 17, 6)}'
        box = 'width="34" height="12" viewBox="0 0 34 12" aria-hidden="true"'
        drawing = f'<svg class="s{style % len(LOOKS)}" {box}>{sample}</svg>'
        items.append(f"<li>{drawing}{escape(label)}</li>")
    return f'<ul class="legend">{"".join(items)}</ul>'


def line_chart(
    title: str,
    series: Sequence[Series],
    x_label: str,
    y_label: str,
    y_range: tuple[float, float] | None = None,
    keys: str = "",
) -> str:
    """A `<figure>` with one chart, or with a line saying that there is no data yet.

    Args:
        title: what is shown, above the chart.
        series: the lines.
        x_label: the horizontal axis with its unit.
        y_label: the vertical axis with its unit.
        y_range: fixed limits of the vertical axis; from the data if None.
        keys: HTML of a legend to set beside the title.
    """
    caption = f"<figcaption>{escape(title)}{keys}</figcaption>"
    points = [(x, y) for s in series for x, y in zip(s.xs, s.ys, strict=True) if math.isfinite(y) and math.isfinite(x)]
    if not points:
        return f'<figure class="chart">{caption}<p class="missing">No data yet.</p></figure>'
    power = 0 if y_range else magnitude([y for _, y in points])
    scale = 10.0**power
    xs = [x for x, _ in points]
    ys = [y / scale for _, y in points] + [y / scale for s in series for _, *ends in s.band() for y in ends]
    x_ticks = ticks(min(xs), max(xs))
    # The horizontal axis ends where the data end, so that no width is lost to a round last tick.
    x_low, x_high = (min(xs), max(xs)) if max(xs) > min(xs) else (x_ticks[0], x_ticks[-1])
    y_ticks = ticks(*y_range) if y_range else ticks(min(ys), max(ys))

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - x_low) / (x_high - x_low)
        up = min(max((y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0]), 0.0), 1.0)  # a band may leave a fixed range
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)

    body = [_axes(x_ticks, y_ticks, (x_low, x_high), place)]
    body += [_band(s, scale, place) for s in series]
    body += [_line(s, scale, place) for s in series]
    if power:
        y_label += f" (×10{superscript(power)})"
    body.append(f'<text class="label" x="0" y="13">{escape(y_label)}</text>')
    body.append(f'<text class="label mid" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 6}">{escape(x_label)}</text>')
    name = escape(f"{title}: {y_label} against {x_label}")
    return (
        f'<figure class="chart">{caption}<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{name}">'
        f"{''.join(body)}</svg></figure>"
    )


class _Place(Protocol):
    """The type of the function that maps data to the drawing."""

    def __call__(self, x: float, y: float) -> tuple[float, float]: ...


def _axes(x_ticks: list[float], y_ticks: list[float], x_range: tuple[float, float], place: _Place) -> str:
    parts = []
    for value, label in zip(y_ticks, tick_labels(y_ticks), strict=True):
        y = place(x_range[0], value)[1]
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text class="end" x="{LEFT - 6}" y="{y + 3.6:.1f}">{label}</text>')
    margin = 1e-9 * (x_range[1] - x_range[0])
    floor = HEIGHT - BOTTOM
    for value, label in zip(x_ticks, tick_labels(x_ticks), strict=True):
        if x_range[0] - margin <= value <= x_range[1] + margin:
            x = place(value, y_ticks[0])[0]
            parts.append(f'<path class="axis" d="M{x:.1f} {floor}v4"/>')
            parts.append(f'<text class="mid" x="{x:.1f}" y="{floor + 16}">{label}</text>')
    parts.append(f'<path class="axis" d="M{LEFT} {floor}H{WIDTH - RIGHT}"/>')
    return "".join(parts)


def _band(series: Series, scale: float, place: _Place) -> str:
    band = series.band()
    if len(band) < 2 or series.style is None:
        return ""
    outline = [place(x, high / scale) for x, _, high in band] + [place(x, low / scale) for x, low, _ in reversed(band)]
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in outline)
    return f'<g class="s{series.style % len(LOOKS)}"><polygon class="band" points="{points}"/></g>'


def _line(series: Series, scale: float, place: _Place) -> str:
    path, marks, pen = [], [], "M"
    style = None if series.style is None else look(series.style)
    colour = "plain" if series.style is None else f"s{series.style % len(LOOKS)}"
    for x, y in zip(series.xs, series.ys, strict=True):
        if not (math.isfinite(x) and math.isfinite(y)):
            pen = "M"
            continue
        px, py = place(x, y / scale)
        path.append(f"{pen}{px:.1f} {py:.1f}")
        pen = "L"
        tip = f"<title>{escape(series.label)}: {y:.5g} at {x:,.6g}</title>"
        marks.append(f"<g>{tip}{marker(style.marker if style else 'o', px, py)}</g>")
    dash = f' stroke-dasharray="{style.dash}"' if style and style.dash else ""
    shown = "".join(marks) if len(marks) <= _MARKED else ""
    return f'<g class="{colour}"><path class="line" d="{"".join(path)}"{dash}/>{shown}</g>'
