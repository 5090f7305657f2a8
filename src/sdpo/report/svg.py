"""Line charts as inline SVG, coloured by the page's CSS variables."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from sdpo.report.axis_ticks import magnitude, superscript, tick_labels, ticks
from sdpo.report.line_styles import css_class, line_style

WIDTH, HEIGHT = 360, 232
LEFT, RIGHT, TOP, BOTTOM = 46, 16, 26, 42
_FLOOR = HEIGHT - BOTTOM
_MOST_MARKERS = 32  # markers on a line with more points would cover it

_NOTHING = Markup("")

# The corners of each marker at size 1, by matplotlib's letter; a circle is drawn apart.
_CORNERS: dict[str, Sequence[tuple[float, float]]] = {
    "s": [(-1, -1), (1, -1), (1, 1), (-1, 1)],
    "^": [(0, -1.25), (1.2, 1), (-1.2, 1)],
    "v": [(0, 1.25), (1.2, -1), (-1.2, -1)],
    "D": [(0, -1.4), (1.4, 0), (0, 1.4), (-1.4, 0)],
    "<": [(-1.25, 0), (1, -1.2), (1, 1.2)],
    ">": [(1.25, 0), (-1, 1.2), (-1, -1.2)],
    "P": [
        *[(-0.4, -1), (0.4, -1), (0.4, -0.4), (1, -0.4), (1, 0.4), (0.4, 0.4)],
        *[(0.4, 1), (-0.4, 1), (-0.4, 0.4), (-1, 0.4), (-1, -0.4), (-0.4, -0.4)],
    ],
}


@dataclass(frozen=True)
class Series:
    """One line of a chart.

    Attributes:
        label: the line's name.
        xs: horizontal positions, [P].
        ys: vertical positions, [P]; values that are not finite leave gaps.
        style: the number of the line's style; None draws a plain line, for a chart that has only one.
        deviation: half the height of the band around the line, [P]; None and values that are not finite draw none.
    """

    label: str
    xs: Sequence[float]
    ys: Sequence[float]
    style: int | None = None
    deviation: Sequence[float] | None = None

    def points(self) -> list[tuple[float, float]]:
        """Return the points with finite coordinates."""
        return [(x, y) for x, y in zip(self.xs, self.ys, strict=True) if math.isfinite(x) and math.isfinite(y)]

    def band(self) -> list[tuple[float, float, float]]:
        """Return x, lower y and upper y of the band wherever it is drawn."""
        found = zip(self.xs, self.ys, self.deviation or [], strict=self.deviation is not None)
        return [(x, y - d, y + d) for x, y, d in found if math.isfinite(y) and math.isfinite(d)]


@dataclass(frozen=True)
class _Axes:
    """The map from data to drawing coordinates.

    Attributes:
        x_ticks: ticks of the horizontal axis.
        y_ticks: ticks of the vertical axis; the axis ends at the first and the last of them.
        x_range: ends of the horizontal axis.
        power: the power of ten that y values are divided by.
    """

    x_ticks: list[float]
    y_ticks: list[float]
    x_range: tuple[float, float]
    power: int

    @classmethod
    def fit(cls, series: Sequence[Series], y_range: tuple[float, float] | None) -> _Axes:
        """Choose axes that show all points and bands; `y_range` fixes the vertical axis."""
        points = [point for s in series for point in s.points()]
        power = 0 if y_range else magnitude([y for _, y in points])
        ys = [y for _, y in points] + [y for s in series for _, *ends in s.band() for y in ends]
        low, high = y_range or (min(ys) / 10.0**power, max(ys) / 10.0**power)
        left, right = min(x for x, _ in points), max(x for x, _ in points)
        x_ticks = ticks(left, right)
        # The horizontal axis ends where the data end, so that no width is lost to a round last tick.
        x_range = (left, right) if right > left else (x_ticks[0], x_ticks[-1])
        return cls(x_ticks, ticks(low, high), x_range, power)

    def across(self, x: float) -> float:
        """Return the horizontal drawing coordinate of a data value."""
        low, high = self.x_range
        return LEFT + (x - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    def up(self, y: float) -> float:
        """Return the vertical drawing coordinate of a data value."""
        return self.height(y / 10.0**self.power)

    def height(self, value: float) -> float:
        """Return the vertical drawing coordinate of a value in the axis' unit; outside of the axis, of its end."""
        low, high = self.y_ticks[0], self.y_ticks[-1]
        share = min(max((value - low) / (high - low), 0.0), 1.0)  # a band may leave a fixed range
        return _FLOOR - share * (HEIGHT - TOP - BOTTOM)


def marker(shape: str, x: float, y: float, size: float = 3.4) -> Markup:
    """Return the SVG element of a marker.

    Args:
        shape: matplotlib's letter.
        x: horizontal centre.
        y: vertical centre.
        size: half the width.
    """
    if shape == "o":
        return Markup('<circle cx="{:.1f}" cy="{:.1f}" r="{}"/>').format(x, y, size)
    points = " ".join(f"{x + dx * size:.1f},{y + dy * size:.1f}" for dx, dy in _CORNERS[shape])
    return Markup('<polygon points="{}"/>').format(points)


def legend(entries: Sequence[tuple[str, int]]) -> Markup:
    """Return an HTML list of lines, given as pairs of label and style number."""
    return Markup('<ul class="legend">{}</ul>').format(_NOTHING.join(_legend_item(*entry) for entry in entries))


def _legend_item(label: str, style: int) -> Markup:
    box = Markup('width="34" height="12" viewBox="0 0 34 12" aria-hidden="true"')
    line = Markup('<path class="line" d="M1 6H33"{}/>').format(_dash(style))
    drawing = Markup('<svg class="{}" {}>{}{}</svg>')
    drawing = drawing.format(css_class(style), box, line, marker(line_style(style).marker, 17, 6))
    return Markup("<li>{}{}</li>").format(drawing, label)


def line_chart(
    title: str,
    series: Sequence[Series],
    x_label: str,
    y_label: str,
    y_range: tuple[float, float] | None = None,
    keys: Markup = _NOTHING,
) -> Markup:
    """Return an HTML `<figure>` with one chart, or with a remark if there are no data yet.

    Args:
        title: text above the chart.
        series: the lines.
        x_label: what the horizontal axis shows, with its unit.
        y_label: what the vertical axis shows, with its unit.
        y_range: fixed limits of the vertical axis; None fits them to the data.
        keys: a legend to set beside the title.
    """
    caption = Markup("<figcaption>{}{}</figcaption>").format(title, keys)
    if not any(s.points() for s in series):
        return Markup('<figure class="chart">{}<p class="missing">No data yet.</p></figure>').format(caption)
    axes = _Axes.fit(series, y_range)
    if axes.power:
        y_label += f" (×10{superscript(axes.power)})"
    body = [_draw_axes(axes), *(_draw_band(s, axes) for s in series), *(_draw_line(s, axes) for s in series)]
    body.append(Markup('<text class="label" x="0" y="13">{}</text>').format(y_label))
    centre = (LEFT + WIDTH - RIGHT) / 2
    body.append(Markup('<text class="label mid" x="{}" y="{}">{}</text>').format(centre, HEIGHT - 6, x_label))
    return Markup(
        '<figure class="chart">{}<svg viewBox="0 0 {} {}" role="img" aria-label="{}: {} against {}">{}</svg></figure>'
    ).format(caption, WIDTH, HEIGHT, title, y_label, x_label, _NOTHING.join(body))


def _draw_axes(axes: _Axes) -> Markup:
    parts = []
    for value, label in zip(axes.y_ticks, tick_labels(axes.y_ticks), strict=True):
        y = axes.height(value)
        parts.append(Markup('<path class="grid" d="M{} {:.1f}H{}"/>').format(LEFT, y, WIDTH - RIGHT))
        parts.append(Markup('<text class="end" x="{}" y="{:.1f}">{}</text>').format(LEFT - 6, y + 3.6, label))
    low, high = axes.x_range
    margin = 1e-9 * (high - low)
    for value, label in zip(axes.x_ticks, tick_labels(axes.x_ticks), strict=True):
        if low - margin <= value <= high + margin:
            x = axes.across(value)
            parts.append(Markup('<path class="axis" d="M{:.1f} {}v4"/>').format(x, _FLOOR))
            parts.append(Markup('<text class="mid" x="{:.1f}" y="{}">{}</text>').format(x, _FLOOR + 16, label))
    parts.append(Markup('<path class="axis" d="M{} {}H{}"/>').format(LEFT, _FLOOR, WIDTH - RIGHT))
    return _NOTHING.join(parts)


def _draw_band(series: Series, axes: _Axes) -> Markup:
    band = series.band()
    if len(band) < 2 or series.style is None:
        return _NOTHING
    outline = [(x, high) for x, _, high in band] + [(x, low) for x, low, _ in reversed(band)]
    points = " ".join(f"{axes.across(x):.1f},{axes.up(y):.1f}" for x, y in outline)
    return Markup('<g class="{}"><polygon class="band" points="{}"/></g>').format(css_class(series.style), points)


def _draw_line(series: Series, axes: _Axes) -> Markup:
    path, marks, pen = "", [], "M"
    shape = "o" if series.style is None else line_style(series.style).marker
    for x, y in zip(series.xs, series.ys, strict=True):
        if not (math.isfinite(x) and math.isfinite(y)):
            pen = "M"
            continue
        across, up = axes.across(x), axes.up(y)
        path += f"{pen}{across:.1f} {up:.1f}"
        pen = "L"
        tip = Markup("<title>{}: {:.5g} at {:,.6g}</title>").format(series.label, y, x)
        marks.append(Markup("<g>{}{}</g>").format(tip, marker(shape, across, up)))
    line = Markup('<path class="line" d="{}"{}/>').format(path, _dash(series.style))
    shown = _NOTHING.join(marks) if len(marks) <= _MOST_MARKERS else _NOTHING
    colour = "plain" if series.style is None else css_class(series.style)
    return Markup('<g class="{}">{}{}</g>').format(colour, line, shown)


def _dash(style: int | None) -> Markup:
    """Return the SVG attribute of a style's dashes, with a space before it; empty for a solid line."""
    dash = "" if style is None else line_style(style).dash
    return Markup(' stroke-dasharray="{}"').format(dash) if dash else _NOTHING
