"""The numbers of the report: paired gains and learning curves. Pure functions of what was read."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from sdpo.report.reader import COSTS, FloatArray, Run, Split

SplitName = Literal["seen", "unseen"]


@dataclass(frozen=True)
class Gain:
    """Mean per-image difference and its standard error, std(differences, ddof=1)/√n; nan for a single image."""

    mean: float
    standard_error: float
    images: int

    @property
    def telling(self) -> bool:
        """Whether there are enough images for the standard error to mean something."""
        return self.images >= 10

    @property
    def clear(self) -> bool:
        """Whether the gain is more than two standard errors away from zero, over enough images to tell."""
        return self.telling and abs(self.mean) > 2 * self.standard_error


@dataclass(frozen=True)
class Comparison:
    """One row of the result table."""

    steps: int
    before: float | None
    after: float | None
    gain: Gain | None


@dataclass(frozen=True)
class Point:
    """One evaluation's mean score and what the run had spent by then."""

    epoch: int
    costs: dict[str, float]
    mean: float


def paired_gain(before: FloatArray, after: FloatArray) -> Gain:
    """The mean of after − before over the same prompts and seeds.

    Args:
        before: [N] scores of the base model.
        after: [N] scores of the tuned model, in the same order.

    Raises:
        ValueError: if the lengths differ or there is no image.
    """
    if before.shape != after.shape or before.ndim != 1 or not len(before):
        raise ValueError(f"paired scores need two equally long lists, not shapes {before.shape} and {after.shape}")
    difference = after - before
    n = len(difference)
    error = float(difference.std(ddof=1) / math.sqrt(n)) if n > 1 else math.nan
    return Gain(float(difference.mean()), error, n)


def score_names(run: Run, split: SplitName = "seen") -> list[str]:
    """Every reward and judge that was evaluated: the trained rewards first, the judges last."""
    found: dict[str, None] = {}
    for evaluation in run.evaluations:
        part = _part(evaluation.seen, evaluation.unseen, split)
        found.update(dict.fromkeys(part.scores if part else {}))
    if split == "seen":
        found.update(dict.fromkeys(name for row in run.metrics for name, _ in _metric_scores(row)))
    rewards = run.config.get("rewards")
    trained = [str(name) for name in rewards] if isinstance(rewards, dict) else []
    judges = run.judges
    return sorted(found, key=lambda n: (n in judges, n not in trained, trained.index(n) if n in trained else 0))


def step_counts(run: Run) -> list[int]:
    """Every step count that was evaluated, ascending."""
    counts = {steps for e in run.evaluations for by_steps in e.seen.scores.values() for steps in by_steps}
    counts |= {steps for e in run.evaluations if e.unseen for b in e.unseen.scores.values() for steps in b}
    counts |= {steps for row in run.metrics for _, steps in _metric_scores(row)}
    return sorted(counts)


def paired(run: Run) -> bool:
    """Whether the base's and the latest evaluation drew the same prompts from the same seeds."""
    base, tuned = run.base, run.tuned
    if base is None or tuned is None:
        return False
    return (base.seen.prompts, base.seen.seeds) == (tuned.seen.prompts, tuned.seen.seeds)


def compare(run: Run, name: str, split: SplitName = "seen") -> list[Comparison]:
    """Before and after at each step count; the gain is None where the images cannot be paired."""
    base = _part(run.base.seen, run.base.unseen, split) if run.base else None
    tuned = _part(run.tuned.seen, run.tuned.unseen, split) if run.tuned else None
    first, last = (base.scores.get(name, {}) if base else {}), (tuned.scores.get(name, {}) if tuned else {})
    same = base is not None and tuned is not None and (base.prompts, base.seeds) == (tuned.prompts, tuned.seeds)
    rows = []
    for steps in sorted(first.keys() | last.keys()):
        before, after = first.get(steps), last.get(steps)
        gain = None
        if same and before is not None and after is not None and len(before) == len(after) > 0:
            gain = paired_gain(before, after)
        rows.append(Comparison(steps, _mean(before), _mean(after), gain))
    return rows


def curve(run: Run, name: str, steps: int, split: SplitName = "seen") -> list[Point]:
    """The learning curve of one score at one step count, by epoch.

    Epochs of which only `metrics.jsonl` knows the mean are filled in from there.
    """
    points: dict[int, Point] = {}
    if split == "seen":
        for row in run.metrics:
            value = row.get(f"eval/{name}/{steps}")
            if isinstance(value, (int, float)):
                costs = {key: float(row[key]) for key in COSTS if isinstance(row.get(key), (int, float))}
                points[int(row["epoch"])] = Point(int(row["epoch"]), costs, float(value))
    for evaluation in run.evaluations:
        part = _part(evaluation.seen, evaluation.unseen, split)
        mean = _mean(part.scores.get(name, {}).get(steps)) if part else None
        if mean is not None:
            points[evaluation.epoch] = Point(evaluation.epoch, evaluation.costs, mean)
    return [points[epoch] for epoch in sorted(points)]


def thin(xs: list[float], ys: list[float], limit: int = 240) -> tuple[list[float], list[float], int]:
    """Average neighbouring points until there are at most `limit`; also returns how many went into each."""
    size = math.ceil(len(xs) / limit) if xs else 1
    if size <= 1:
        return xs, ys, 1
    cuts = range(0, len(xs), size)
    return [float(np.mean(xs[i : i + size])) for i in cuts], [float(np.mean(ys[i : i + size])) for i in cuts], size


def _part(seen: Split, unseen: Split | None, split: SplitName) -> Split | None:
    return seen if split == "seen" else unseen


def _mean(values: FloatArray | None) -> float | None:
    return float(values.mean()) if values is not None and len(values) else None


def _metric_scores(row: dict[str, object]) -> list[tuple[str, int]]:
    """The (name, steps) of a row's `eval/<name>/<steps>` keys."""
    found = []
    for key in row:
        name, _, steps = key.removeprefix("eval/").rpartition("/")
        if key.startswith("eval/") and name and steps.isdigit():
            found.append((name, int(steps)))
    return found
