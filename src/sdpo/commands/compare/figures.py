"""The figure of a comparison: reward against a cost, a panel per number of steps, a line per group with a band."""

from __future__ import annotations

import math
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from sdpo.commands.compare.comparison import Comparison, over_seeds
from sdpo.commands.compare.measures import group_curve
from sdpo.report.formatting import step_label
from sdpo.report.plotting import plot_arguments, style_axes
from sdpo.report.reader import COST_LABELS


def draw_comparison(comparison: Comparison, cost: str, path: Path) -> None:
    """Write a panel per reward and number of steps.

    Args:
        comparison: the comparison.
        cost: the horizontal axis, one of `COSTS`.
        path: the PNG file to write.
    """
    columns = math.ceil(math.sqrt(len(comparison.steps)))  # nearly square: readable at a page's width
    rows_each = math.ceil(len(comparison.steps) / columns)
    rows = rows_each * len(comparison.rewards)
    width = max(6.4, 4.2 * columns)
    figure = Figure(figsize=(width, 3.0 * rows + 0.6), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    for row, name in enumerate(comparison.rewards):
        for i, steps in enumerate(comparison.steps):
            axes = figure.add_subplot(rows, columns, row * rows_each * columns + i + 1)
            _draw_panel(axes, comparison, name, steps, cost)
    names = [group.name for group in comparison.groups]
    # One legend below all panels: inside a panel it would cover a line.
    fit = int(width * 72 / (6.2 * max(map(len, names)) + 52))
    figure.legend(
        figure.axes[0].lines,
        names,
        loc="outside lower center",
        ncols=max(1, min(len(names), fit)),
        fontsize=9,
        frameon=False,
        handlelength=3.4,
        title=over_seeds(comparison, "lines: mean, bands: ± one standard deviation,"),
        title_fontsize=9,
    )
    # Without the library's version the same runs give the same bytes.
    figure.savefig(path, metadata={"Software": None})


def _draw_panel(axes: Axes, comparison: Comparison, name: str, steps: int, cost: str) -> None:
    for i, group in enumerate(comparison.groups):
        found, style = group_curve(comparison, group, name, steps), plot_arguments(i)
        # The first group is drawn last, above the others.
        axes.plot(found.costs[cost], found.mean, label=group.name, zorder=4 - i / 100, **style)
        low, high = found.mean - found.std, found.mean + found.std
        axes.fill_between(found.costs[cost], low, high, color=style["color"], alpha=0.13, linewidth=0)
    axes.set_title(step_label(steps), fontsize=10, loc="left")
    axes.set_xlabel(COST_LABELS[cost], fontsize=9)
    axes.set_ylabel(f"mean {name}", fontsize=9)
    style_axes(axes)
