"""`curves.png`: the learning curves as a picture for a README or a paper's draft."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from sdpo.report.looks import look, step_label
from sdpo.report.reader import Run
from sdpo.report.stats import curve, score_names, step_counts


def draw_curves(run: Run, path: Path) -> None:
    """Write one panel a reward or judge, with one line a step count, against the samples drawn."""
    names = score_names(run)
    columns = min(3, max(1, len(names)))
    rows = math.ceil(max(1, len(names)) / columns)
    size = (4.6 * columns, 3.5 * rows) if names else (6.4, 2.0)
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    if not names:
        figure.text(0.5, 0.5, "No learning curves yet: this run has not been evaluated.", ha="center", color="#636a72")
    panels = [figure.add_subplot(rows, columns, i + 1) for i in range(len(names))]
    for axes, name in zip(panels, names, strict=True):
        _panel(axes, run, name)
    # One legend under all panels: inside a panel it would cover a line.
    lines = {str(line.get_label()): line for axes in panels for line in axes.lines}
    if lines:
        shown = [step_label(steps) for steps in step_counts(run) if step_label(steps) in lines]
        handles = [lines[label] for label in shown]
        figure.legend(handles, shown, loc="outside lower center", ncols=6, fontsize=9, frameon=False, handlelength=3.4)
    # Without the writer's version the same directory gives the same bytes.
    figure.savefig(path, metadata={"Software": None})


def _panel(axes: Axes, run: Run, name: str) -> None:
    factor = 100.0 if name in run.judges else 1.0
    for i, steps in enumerate(step_counts(run)):
        points = [p for p in curve(run, name, steps) if "images" in p.costs]
        if points:
            axes.plot(
                [p.costs["images"] for p in points],
                [p.mean * factor for p in points],
                label=step_label(steps),
                **line_style(i),
            )
    axes.set_title(name, fontsize=10, loc="left")
    axes.set_xlabel("samples", fontsize=9)
    axes.set_ylabel("recognised, %" if name in run.judges else "mean reward", fontsize=9)
    if name in run.judges:
        axes.set_ylim(0, 102)
    plain_axes(axes)


def line_style(index: int) -> dict[str, Any]:
    """The arguments of `Axes.plot` that give a line the look of its number."""
    style = look(index)
    numbers = [float(part) / 1.6 for part in style.dash.split()]
    return {
        "color": style.light,
        "linewidth": 1.6,
        "linestyle": (0, tuple(numbers)) if numbers else "-",
        "marker": style.marker,
        "markersize": 4,
    }


def plain_axes(axes: Axes) -> None:
    """Quiet axes: no frame, faint lines across, thousands as k."""
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.tick_params(labelsize=8, color="#9aa0a6")
    axes.grid(axis="y", color="#e3e5e8", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#9aa0a6")
