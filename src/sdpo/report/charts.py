"""Which charts the page has: learning curves against each cost, and how training went."""

from __future__ import annotations

import math

from sdpo.report.looks import step_label, time_unit
from sdpo.report.reader import COSTS, Run
from sdpo.report.stats import SplitName, curve, score_names, step_counts, thin
from sdpo.report.svg import Series, legend, line_chart

_TRAINING = {
    "train/loss": ("Loss", "loss"),
    "train/clip_fraction": ("Clip fraction", "fraction"),
    "train/grad_norm": ("Gradient norm", "norm"),
    "train/on_policy_log_ratio": ("Log-ratio on policy, 0 if all is well", "log-ratio"),
    "train/learning_rate": ("Learning rate", "learning rate"),
}


def learning_curves(run: Run, name: str, split: SplitName = "seen") -> list[str]:
    """One score at each step count: a chart against samples, reward queries, network evaluations and time each."""
    counts = step_counts(run)
    curves = {steps: curve(run, name, steps, split) for steps in counts}
    judged = name in run.judges
    factor = 100.0 if judged else 1.0
    costs = ["images"] if split == "unseen" else list(COSTS)
    charts = []
    for cost in costs:
        divisor, label = 1.0, COSTS[cost]
        if cost == "seconds":
            longest = max((p.costs.get(cost, 0.0) for points in curves.values() for p in points), default=0.0)
            divisor, unit = time_unit(longest)
            label = f"time, {unit}"
        series = []
        for i, steps in enumerate(counts):
            points = [p for p in curves[steps] if cost in p.costs]
            xs, ys = [p.costs[cost] / divisor for p in points], [p.mean * factor for p in points]
            series.append(Series(step_label(steps), xs, ys, i))
        axis = "recognised, %" if judged else "mean reward"
        title = f"{name}, unseen prompts" if split == "unseen" else f"against {COSTS[cost]}"
        charts.append(line_chart(title, series, label, axis, percent_range(series) if judged else None))
    return charts


def percent_range(series: list[Series]) -> tuple[float, float]:
    """From the ten below the smallest value to 100."""
    values = [y for s in series for y in s.ys]
    return (max(0.0, 10.0 * math.floor((min(values, default=0.0) - 1) / 10)), 100.0)


def step_legend(run: Run) -> str:
    """The legend of the learning curves."""
    return legend([(step_label(steps), i) for i, steps in enumerate(step_counts(run))])


def training_charts(run: Run) -> str:
    """Rewards while training, then the optimiser's own numbers; only those that the run recorded."""
    ends = [_series(run, "reward/first_step", "first step", 0), _series(run, "reward/last_step", "last step", 1)]
    epochs = _epochs(run)
    charts = [line_chart("Reward", ends, epochs, "mean reward", keys=legend([(s.label, s.style or 0) for s in ends]))]
    for name in _rewards_in_training(run):
        own = _series(run, f"reward/{name}", name)
        charts.append(line_chart(f"{name} while training", [own], epochs, "mean reward"))
    zero = []
    for key, (title, axis) in _TRAINING.items():
        series = _series(run, key, axis)
        if series.xs and not any(series.ys):
            zero.append(title.partition(",")[0])
        elif series.xs or key in ("train/loss", "train/clip_fraction", "train/grad_norm"):
            charts.append(line_chart(title, [series], epochs, axis))
    still = f"<p>0 in every epoch: {', '.join(zero)}.</p>" if zero else ""
    return f'<div class="charts small">{"".join(charts)}</div>{still}'


def _rewards_in_training(run: Run) -> list[str]:
    keys = dict.fromkeys(key for row in run.metrics for key in row if key.startswith("reward/"))
    names = [key.removeprefix("reward/") for key in keys]
    return [name for name in names if name not in ("first_step", "last_step")]


def has_unseen(run: Run) -> bool:
    """Whether any evaluation also scored unseen prompts."""
    return bool(score_names(run, "unseen"))


def _series(run: Run, key: str, label: str, style: int | None = None) -> Series:
    found = [(float(row["epoch"]), float(row[key])) for row in run.metrics if isinstance(row.get(key), (int, float))]
    xs, ys, _ = thin([x for x, _ in found], [y for _, y in found])
    return Series(label, xs, ys, style)


def _epochs(run: Run) -> str:
    """The label of the horizontal axis, which says so where neighbouring epochs are averaged."""
    rows = [float(row["epoch"]) for row in run.metrics]
    size = thin(rows, rows)[2]
    return "epoch" if size == 1 else f"epoch (means of {size})"
