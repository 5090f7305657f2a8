"""The charts of a run: learning curves against each cost, rewards and optimiser values during training."""

from __future__ import annotations

import math
from dataclasses import dataclass

from markupsafe import Markup

from sdpo.evaluation.record import COSTS
from sdpo.report.formatting import step_label, time_unit
from sdpo.report.reader import COST_LABELS, Run
from sdpo.report.stats import CurvePoint, average_neighbours, learning_curve, step_counts
from sdpo.report.svg import Series, legend, line_chart

# The key in the metrics → title and vertical axis.
_OPTIMISER = {
    "train/loss": ("Loss", "loss"),
    "train/clip_fraction": ("Clip fraction", "fraction"),
    "train/grad_norm": ("Gradient norm", "norm"),
    "train/on_policy_log_ratio": ("On-policy log-ratio, ideally 0", "log-ratio"),
    "train/learning_rate": ("Learning rate", "learning rate"),
}
_DRAWN_EVEN_IF_MISSING = ("train/loss", "train/clip_fraction", "train/grad_norm")


@dataclass(frozen=True)
class ScoreCharts:
    """The learning curves of one score.

    Attributes:
        name: the score's name.
        judged: whether the score is a rate of recognition.
        against_samples: the charts against samples.
        against_others: lists of charts, one list per other cost.
    """

    name: str
    judged: bool
    against_samples: list[Markup]
    against_others: list[list[Markup]]


@dataclass(frozen=True)
class TrainingCharts:
    """The charts of values that training recorded.

    Attributes:
        charts: one HTML figure per value.
        zero: titles of the values that are 0 in every epoch and therefore have no chart.
    """

    charts: list[Markup]
    zero: list[str]


def score_charts(run: Run, name: str) -> ScoreCharts:
    """Return a score's chart against each cost, with a line per number of steps."""
    curves = {steps: learning_curve(run, name, steps) for steps in step_counts(run)}
    first, *others = ([_curves_chart(run, name, curves, cost, f"against {COST_LABELS[cost]}")] for cost in COSTS)
    return ScoreCharts(name, name in run.judges, first, others)


def unseen_chart(run: Run, name: str) -> Markup:
    """Return a score's chart on unseen prompts against samples, with a line per number of steps."""
    curves = {steps: learning_curve(run, name, steps, "unseen") for steps in step_counts(run)}
    return _curves_chart(run, name, curves, "images", f"{name}, unseen prompts")


def _curves_chart(run: Run, name: str, curves: dict[int, list[CurvePoint]], cost: str, title: str) -> Markup:
    divisor, label = 1.0, COST_LABELS[cost]
    if cost == "seconds":
        longest = max((p.costs.get(cost, 0.0) for points in curves.values() for p in points), default=0.0)
        divisor, unit = time_unit(longest)
        label = f"time, {unit}"
    judged = name in run.judges
    factor = 100.0 if judged else 1.0
    series = []
    for style, (steps, curve) in enumerate(curves.items()):
        points = [p for p in curve if cost in p.costs]
        xs, ys = [p.costs[cost] / divisor for p in points], [p.mean * factor for p in points]
        series.append(Series(step_label(steps), xs, ys, style))
    axis = "recognised, %" if judged else "mean reward"
    return line_chart(title, series, label, axis, percent_range(series) if judged else None)


def percent_range(series: list[Series]) -> tuple[float, float]:
    """Return the limits of an axis in percent: from the multiple of ten below the smallest value to 100."""
    values = [y for s in series for y in s.ys]
    return (max(0.0, 10.0 * math.floor((min(values, default=0.0) - 1) / 10)), 100.0)


def step_legend(run: Run) -> Markup:
    """Return the legend of charts that have a line per number of steps."""
    return legend([(step_label(steps), i) for i, steps in enumerate(step_counts(run))])


def training_charts(run: Run) -> TrainingCharts:
    """Return the charts of rewards and optimiser values, as far as the run recorded them."""
    ends = [_series(run, "reward/first_step", "first step", 0), _series(run, "reward/last_step", "last step", 1)]
    epochs = _epoch_label(run)
    keys = legend([(s.label, s.style or 0) for s in ends])
    charts = [line_chart("Reward", ends, epochs, "mean reward", keys=keys)]
    for name in _rewards_in_training(run):
        line = _series(run, f"reward/{name}", name)
        charts.append(line_chart(f"{name} while training", [line], epochs, "mean reward"))
    zero = []
    for key, (title, axis) in _OPTIMISER.items():
        series = _series(run, key, axis)
        if series.xs and not any(series.ys):
            zero.append(title.partition(",")[0])
        elif series.xs or key in _DRAWN_EVEN_IF_MISSING:
            charts.append(line_chart(title, [series], epochs, axis))
    return TrainingCharts(charts, zero)


def _rewards_in_training(run: Run) -> list[str]:
    keys = dict.fromkeys(key for row in run.metrics for key in row if key.startswith("reward/"))
    names = [key.removeprefix("reward/") for key in keys]
    return [name for name in names if name not in ("first_step", "last_step")]


def _series(run: Run, key: str, label: str, style: int | None = None) -> Series:
    found = [(float(row["epoch"]), float(row[key])) for row in run.metrics if isinstance(row.get(key), (int, float))]
    xs, ys, _ = average_neighbours([x for x, _ in found], [y for _, y in found])
    return Series(label, xs, ys, style)


def _epoch_label(run: Run) -> str:
    """Return the label of a horizontal axis of epochs, which says how many neighbours were averaged."""
    epochs = [float(row["epoch"]) for row in run.metrics]
    size = average_neighbours(epochs, epochs)[2]
    return "epoch" if size == 1 else f"epoch (means of {size})"
