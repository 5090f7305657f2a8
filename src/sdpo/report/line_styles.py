"""Colour, dash pattern and marker of each line, for the SVG charts and the PNG figures alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class LineStyle:
    """The appearance of one line. Dash and marker tell lines apart where colours cannot be seen.

    Attributes:
        light: colour on a light background, as `#rrggbb`.
        dark: colour on a dark background, as `#rrggbb`.
        dash: value of the SVG attribute `stroke-dasharray`; empty for a solid line.
        marker: matplotlib's letter for the marker.
    """

    light: str
    dark: str
    dash: str
    marker: str


# The palette of Okabe and Ito, with brown in place of yellow, which is too faint on white. The colours for a dark
# background are lighter.
LINE_STYLES = (
    LineStyle("#0072B2", "#56B4E9", "", "o"),
    LineStyle("#D55E00", "#F0833A", "7 3", "s"),
    LineStyle("#009E73", "#2DC79B", "2 2.5", "^"),
    LineStyle("#B2559A", "#CC79A7", "9 3 2 3", "D"),
    LineStyle("#B77C00", "#E69F00", "5 2 1 2 1 2", "v"),
    LineStyle("#4B4F54", "#B9BEC5", "12 4", "P"),
    LineStyle("#4FA3D9", "#A6DBFF", "4 1.5", "<"),
    LineStyle("#7A3B1D", "#D9A58C", "10 2 2 2 2 2", ">"),
)


def line_style(index: int) -> LineStyle:
    """Return the style of the line number `index`.

    From the ninth line on the colours repeat, combined with other dashes and markers.
    """
    count = len(LINE_STYLES)
    colour, shape = LINE_STYLES[index % count], LINE_STYLES[(index + index // count) % count]
    return LineStyle(colour.light, colour.dark, shape.dash, shape.marker)


def css_class(index: int) -> str:
    """Return the CSS class, such as `s0`, that gives a line its colour."""
    return f"s{index % len(LINE_STYLES)}"


def css_colours(theme: Literal["light", "dark"]) -> str:
    """Return the declarations of the CSS variables `--s0`, `--s1`, … for a theme."""
    return " ".join(f"--s{i}: {getattr(style, theme)};" for i, style in enumerate(LINE_STYLES))
