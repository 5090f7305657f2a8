"""`curves.png`: the learning curves as a figure for a README or a paper."""

from __future__ import annotations

import math
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from sdpo.report.formatting import step_label
from sdpo.report.plotting import plot_arguments, style_axes
from sdpo.report.reader import Run
from sdpo.report.stats import learning_curve, score_names, step_counts


def draw_curves(run: Run, path: Path) -> None:
    """Write a panel per reward and judge with a line per number of steps, against samples.

    Args:
        run: the run.
        path: the PNG file to write.
    """
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
        _draw_panel(axes, run, name)
    # One legend below all panels: inside a panel it would cover a line.
    lines = {str(line.get_label()): line for axes in panels for line in axes.lines}
    if lines:
        shown = [step_label(steps) for steps in step_counts(run) if step_label(steps) in lines]
        handles = [lines[label] for label in shown]
        figure.legend(handles, shown, loc="outside lower center", ncols=6, fontsize=9, frameon=False, handlelength=3.4)
    # Without the library's version the same directory gives the same bytes.
    figure.savefig(path, metadata={"Software": None})


def _draw_panel(axes: Axes, run: Run, name: str) -> None:
    judged = name in run.judges
    factor = 100.0 if judged else 1.0
    for i, steps in enumerate(step_counts(run)):
        points = [p for p in learning_curve(run, name, steps) if "images" in p.costs]
        if points:
            xs, ys = [p.costs["images"] for p in points], [p.mean * factor for p in points]
            axes.plot(xs, ys, label=step_label(steps), **plot_arguments(i))
    axes.set_title(name, fontsize=10, loc="left")
    axes.set_xlabel("samples", fontsize=9)
    axes.set_ylabel("recognised, %" if judged else "mean reward", fontsize=9)
    if judged:
        axes.set_ylim(0, 102)
    style_axes(axes)
