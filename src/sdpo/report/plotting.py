"""The appearance of lines and axes in the PNG figures."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter

from sdpo.report.line_styles import line_style

_AXIS, _GRID = "#9aa0a6", "#e3e5e8"


def plot_arguments(index: int) -> dict[str, Any]:
    """Return the keyword arguments of `Axes.plot` for the style of the line number `index`."""
    style = line_style(index)
    lengths = [float(part) / 1.6 for part in style.dash.split()]  # matplotlib counts in line widths
    return {
        "color": style.light,
        "linewidth": 1.6,
        "linestyle": (0, tuple(lengths)) if lengths else "-",
        "marker": style.marker,
        "markersize": 4,
    }


def style_axes(axes: Axes) -> None:
    """Draw no frame, faint horizontal lines, and thousands as k."""
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.tick_params(labelsize=8, color=_AXIS)
    axes.grid(axis="y", color=_GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_AXIS)
