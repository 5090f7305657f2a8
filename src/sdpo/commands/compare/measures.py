"""The numbers of a comparison: learning curves over seeds, final scores, gains, areas, samples to reach a reward."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sdpo.commands.compare.comparison import Comparison
from sdpo.commands.compare.groups import RunGroup
from sdpo.evaluation.record import COSTS, Evaluation, FloatArray, ImageScores
from sdpo.report.stats import SplitName, scored_images


@dataclass(frozen=True)
class GroupCurve:
    """A group's learning curve over the P epochs at which all of its S runs were evaluated.

    Attributes:
        epochs: the epochs, [P].
        costs: by cost, what a run had spent by then, mean over seeds, [P].
        values: mean scores of the images, [S, P].
    """

    epochs: list[int]
    costs: dict[str, FloatArray]
    values: FloatArray

    @property
    def mean(self) -> FloatArray:
        """Mean over seeds, [P]."""
        return self.values.mean(axis=0)

    @property
    def std(self) -> FloatArray:
        """Sample standard deviation over seeds, [P]; nan if there is one seed."""
        return std_over_seeds(self.values)


def std_over_seeds(values: FloatArray) -> FloatArray:
    """Return the sample standard deviation √(Σ(x − x̄)² / (S − 1)).

    Args:
        values: one row per seed, [S, …].

    Returns:
        [...]; nan if S is 1.
    """
    return values.std(axis=0, ddof=1) if len(values) > 1 else np.full(values.shape[1:], math.nan)


def group_curve(comparison: Comparison, group: RunGroup, score: str, steps: int | None) -> GroupCurve:
    """Return a group's learning curve over the images that all evaluations have.

    Args:
        comparison: the comparison.
        group: the group.
        score: a reward's or judge's name.
        steps: the number of steps; None is the mean over all numbers of steps.
    """
    by_run = [{e.epoch: e for e in run.evaluations if len(e.costs) == len(COSTS)} for run in group.runs]
    epochs = sorted(set(by_run[0]).intersection(*by_run))
    costs = {key: np.array([np.mean([e[epoch].costs[key] for e in by_run]) for epoch in epochs]) for key in COSTS}
    values = [[_mean_score(comparison, e[epoch], score, steps) for epoch in epochs] for e in by_run]
    return GroupCurve(epochs, costs, np.array(values))


def _mean_score(comparison: Comparison, evaluation: Evaluation, score: str, steps: int | None) -> float:
    counts = comparison.steps if steps is None else [steps]
    return float(np.mean([evaluation.seen.scores[score][s][: comparison.images].mean() for s in counts]))


def final_scores(comparison: Comparison, group: RunGroup, score: str, split: SplitName = "seen") -> FloatArray:
    """Return the mean scores of all images of the results' evaluations.

    Args:
        comparison: the comparison of N numbers of steps.
        group: the group of S runs.
        score: a reward's or judge's name.
        split: which prompts.

    Returns:
        [S, N + 1]: one column per number of steps, then their mean.
    """
    return _mean_scores([_images(run.tuned, split) for run in group.runs], comparison, score)


def base_scores(comparison: Comparison, group: RunGroup, score: str, split: SplitName = "seen") -> FloatArray:
    """Return the mean scores of all images of the evaluations before training.

    Args:
        comparison: the comparison of N numbers of steps.
        group: the group of S runs.
        score: a reward's or judge's name.
        split: which prompts.

    Returns:
        [S, N + 1]: one column per number of steps, then their mean.
    """
    return _mean_scores([_images(run.base, split) for run in group.runs], comparison, score)


def gains(comparison: Comparison, group: RunGroup, score: str) -> FloatArray:
    """Return how much the results' mean scores exceed the base model's on the same images.

    Args:
        comparison: the comparison of N numbers of steps.
        group: the group of S runs.
        score: a reward's or judge's name.

    Returns:
        [S, N + 1]: one column per number of steps, then their mean.
    """
    rows = []
    for run in group.runs:
        before, after = _images(run.base, "seen").scores[score], _images(run.tuned, "seen").scores[score]
        row = []
        for s in comparison.steps:
            count = min(len(before[s]), len(after[s]))
            row.append(after[s][:count].mean() - before[s][:count].mean())
        rows.append([*row, np.mean(row)])
    return np.array(rows)


def _images(evaluation: Evaluation | None, split: SplitName) -> ImageScores:
    assert evaluation is not None  # `make_comparison` has rejected runs that were not evaluated
    images = scored_images(evaluation, split)
    assert images is not None
    return images


def _mean_scores(evaluated: Sequence[ImageScores], comparison: Comparison, score: str) -> FloatArray:
    rows = [[images.scores[score][s].mean() for s in comparison.steps] for images in evaluated]
    return np.array([[*row, np.mean(row)] for row in rows])


def shared_samples(comparison: Comparison) -> float:
    """Return the number of samples at which the shortest of the groups' curves ends."""
    curves = [group_curve(comparison, group, comparison.rewards[0], None) for group in comparison.groups]
    return float(min(curve.costs["images"][-1] for curve in curves))


def areas(comparison: Comparison, group: RunGroup, score: str) -> FloatArray:
    """Return the areas under a score's curves over samples, divided by the samples: the mean score during training.

    ∫ score d(samples) / samples by the trapezoidal rule, from 0 to where the shortest of the groups' curves ends.

    Args:
        comparison: the comparison of N numbers of steps.
        group: the group of S runs.
        score: a reward's or judge's name.

    Returns:
        [S, N + 1]: one column per number of steps, then that of the mean over numbers of steps.
    """
    columns, until = [], shared_samples(comparison)
    for steps in [*comparison.steps, None]:
        found = group_curve(comparison, group, score, steps)
        columns.append([area_under(found.costs["images"], row, until) for row in found.values])
    return np.array(columns).T


def area_under(xs: FloatArray, ys: FloatArray, until: float) -> float:
    """Return the mean height of a piecewise linear curve over [xs[0], until].

    Args:
        xs: positions, ascending, [P].
        ys: heights, [P].
        until: where the area ends.
    """
    inside = xs < until
    x = np.append(xs[inside], until)
    y = np.append(ys[inside], np.interp(until, xs, ys))
    if len(x) < 2:
        return float(y[-1])
    return float(((y[1:] + y[:-1]) / 2 * np.diff(x)).sum() / (x[-1] - x[0]))


def samples_to_reach(comparison: Comparison, group: RunGroup, reference: RunGroup, score: str) -> list[float | None]:
    """Return how many samples a group's mean curve needs to reach the mean score of the reference's results.

    Args:
        comparison: the comparison of N numbers of steps.
        group: the group whose curve is read.
        reference: the group whose results set the target.
        score: a reward's or judge's name.

    Returns:
        N + 1 values: by number of steps, then for the mean over them. None where the target is not reached.
    """
    found = []
    for steps in [*comparison.steps, None]:
        target = float(np.mean([_mean_score(comparison, e, score, steps) for e in reference.results]))
        target -= 1e-9 * abs(target)  # a curve that ends at the target reaches it, whatever the rounding
        curve = group_curve(comparison, group, score, steps)
        found.append(first_crossing(curve.costs["images"], curve.mean, target))
    return found


def first_crossing(xs: FloatArray, ys: FloatArray, target: float) -> float | None:
    """Return the smallest x at which a piecewise linear curve is at least `target`, or None if it never is.

    Args:
        xs: positions, ascending, [P].
        ys: heights, [P].
        target: the height to reach.
    """
    for i, y in enumerate(ys):
        if y >= target:
            if i == 0:
                return float(xs[0])
            part = (target - ys[i - 1]) / (y - ys[i - 1])
            return float(xs[i - 1] + part * (xs[i] - xs[i - 1]))
    return None
