"""The numbers of a comparison: learning curves over seeds, final rewards, areas, samples to reach a reward."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from sdpo.commands.compare.groups import Group
from sdpo.errors import UserError
from sdpo.report.reader import COSTS, Evaluation, FloatArray, Run, Split
from sdpo.report.stats import SplitName, score_names


@dataclass(frozen=True)
class Comparison:
    """What the groups have in common, and can thus be compared by.

    Attributes:
        groups: in the order of the figures.
        rewards: what all runs were scored with, but the judges.
        judges: scores that are 1 where the right thing was recognised and else 0.
        steps: step counts that all evaluations have, ascending.
        images: leading images of a step count that all evaluations have: image i has seed i in all of them.
        notes: what a reader has to know.
    """

    groups: list[Group]
    rewards: list[str]
    judges: list[str]
    steps: list[int]
    images: int
    notes: list[str]

    def group(self, name: str) -> Group | None:
        """The group of that name."""
        return next((group for group in self.groups if group.name == name), None)


@dataclass(frozen=True)
class Curve:
    """A group's learning curve over the P epochs at which all of its S runs were evaluated.

    Attributes:
        epochs: [P].
        costs: what a run had spent by then, the mean over seeds, [P] each.
        values: mean scores of the images, [S, P].
    """

    epochs: list[int]
    costs: dict[str, FloatArray]
    values: FloatArray

    @property
    def mean(self) -> FloatArray:
        """Over seeds, [P]."""
        return self.values.mean(axis=0)

    @property
    def spread(self) -> FloatArray:
        """Sample standard deviation over seeds, [P]; nan where there is one seed."""
        return spread(self.values)


def spread(values: FloatArray) -> FloatArray:
    """Sample standard deviation over the first axis, √(Σ(x − x̄)² / (S − 1)); nan where S is 1."""
    return values.std(axis=0, ddof=1) if len(values) > 1 else np.full(values.shape[1:], math.nan)


def comparable(groups: Sequence[Group]) -> Comparison:
    """What the groups can be compared by.

    Raises:
        UserError: if a run was not evaluated before and after training, its costs are lost, or runs share no reward.
    """
    runs = [run for group in groups for run in group.runs]
    for run in runs:
        if run.base is None or run.tuned is None:
            when = "after training yet: repeat its command to finish it" if run.base else "before training (epoch 0)"
            raise UserError(f"{run.path} has no evaluation {when}; there is nothing to compare")
        lost = [words for key, words in COSTS.items() if not {key} <= run.base.costs.keys() & run.tuned.costs.keys()]
        if lost:
            where = f"the row of epoch {run.tuned.epoch} in metrics.jsonl, or in its evaluation"
            raise UserError(f"{run.path} does not say what it spent ({', '.join(lost)}): that stands in {where}")
    everything = [e.seen for run in runs for e in run.evaluations]
    names = [n for n in score_names(runs[0]) if all(n in e.scores for e in everything)]
    judges = set().union(*(run.judges for run in runs))
    rewards = [n for n in names if n not in judges]
    if not rewards:
        raise UserError("the runs share no reward: " + _lists(runs, lambda e: list(e.seen.scores)))
    shared = {*rewards, *(n for n in names if n in judges)}
    steps = sorted(set[int].intersection(*(set(e.scores[n]) for e in everything for n in shared)))
    if not steps:
        raise UserError("the runs share no step count: " + _lists(runs, lambda e: sorted(e.seen.scores[rewards[0]])))
    images = min(len(e.scores[n][s]) for e in everything for n in shared for s in steps)
    if not images:
        raise UserError("an evaluation holds no image: there is nothing to compare")
    judged = [n for n in names if n in judges]
    return Comparison(list(groups), rewards, judged, steps, images, _notes(groups, everything, images))


def _lists(runs: Sequence[Run], of: Callable[[Evaluation], Sequence[object]]) -> str:
    """What each run has, the runs that have the same together."""
    found: dict[str, list[str]] = {}
    for run in runs:
        found.setdefault(", ".join(map(str, of(run.evaluations[-1]))), []).append(run.name)
    return "; ".join(f"{', '.join(names)}: {what}" for what, names in found.items())


def _notes(groups: Sequence[Group], everything: Sequence[Split], images: int) -> list[str]:
    notes = []
    for group in groups:
        for run in group.runs:
            planned = run.config.get("epochs")
            if run.stopped.get("text"):
                notes.append(f"{run.name}: {run.stopped['text']}")
            elif isinstance(planned, int) and run.last_epoch < planned:
                notes.append(f"{run.name} is unfinished: epoch {run.last_epoch} of {planned}.")
            notes += [f"{run.name}: {note}" for note in run.notes]
    first = everything[0]
    if any(
        (e.prompts[:images], e.seeds[:images]) != (first.prompts[:images], first.seeds[:images]) for e in everything
    ):
        notes.append("The runs were evaluated on different prompts or seeds: compare their rewards with care.")
    spent = {group.name: _samples(group) for group in groups}
    if len(set(spent.values())) > 1:
        listed = ", ".join(f"{name} {count:,.0f}" for name, count in spent.items())
        notes.append(f"The runs drew different numbers of samples: {listed}. Areas end where the shortest does.")
    if len({tuple(group.seeds) for group in groups}) > 1:
        listed = ", ".join(f"{group.name} {' '.join(map(str, group.seeds))}" for group in groups)
        notes.append(f"The seeds differ: {listed}.")
    return notes


def over_seeds(comparison: Comparison, what: str) -> str:
    """`what` over how many runs, in words; of one run there is nothing but its value."""
    counts = sorted({len(group.runs) for group in comparison.groups})
    if counts == [1]:
        return "1 seed"
    return f"{what} over {' to '.join(map(str, counts[:: max(1, len(counts) - 1)]))} seeds"


def _samples(group: Group) -> float:
    return min(run.evaluations[-1].costs.get("images", 0.0) for run in group.runs)


def curve(comparison: Comparison, group: Group, score: str, steps: int | None) -> Curve:
    """The curve of a score at a step count, over the images that all evaluations have; None: mean over step counts."""
    by_run = [{e.epoch: e for e in run.evaluations if len(e.costs) == len(COSTS)} for run in group.runs]
    epochs = sorted(set(by_run[0]).intersection(*by_run))
    costs = {key: np.array([np.mean([e[epoch].costs[key] for e in by_run]) for epoch in epochs]) for key in COSTS}
    values = [[_value(comparison, e[epoch], score, steps) for epoch in epochs] for e in by_run]
    return Curve(epochs, costs, np.array(values))


def _value(comparison: Comparison, evaluation: Evaluation, score: str, steps: int | None) -> float:
    counts = comparison.steps if steps is None else [steps]
    return float(np.mean([evaluation.seen.scores[score][s][: comparison.images].mean() for s in counts]))


def final(comparison: Comparison, group: Group, score: str, split: SplitName = "seen") -> FloatArray:
    """Mean scores of all images of the last evaluation: [S, steps + 1], the last column their mean."""
    return _table([_of(run.tuned, split) for run in group.runs], comparison, score)


def base(comparison: Comparison, group: Group, score: str, split: SplitName = "seen") -> FloatArray:
    """As `final`, of the evaluation before training."""
    return _table([_of(run.base, split) for run in group.runs], comparison, score)


def gain(comparison: Comparison, group: Group, score: str) -> FloatArray:
    """As `final`, minus the base model's score on the same images."""
    pairs = [(_of(run.base, "seen"), _of(run.tuned, "seen")) for run in group.runs]
    rows = []
    for before, after in pairs:
        row = []
        for s in comparison.steps:
            old, new = before.scores[score][s], after.scores[score][s]
            count = min(len(old), len(new))
            row.append(new[:count].mean() - old[:count].mean())
        rows.append([*row, np.mean(row)])
    return np.array(rows)


def _of(evaluation: Evaluation | None, split: SplitName) -> Split:
    assert evaluation is not None  # `comparable` has refused what was not evaluated
    part = evaluation.seen if split == "seen" else evaluation.unseen
    assert part is not None
    return part


def _table(parts: Sequence[Split], comparison: Comparison, score: str) -> FloatArray:
    rows = [[part.scores[score][s].mean() for s in comparison.steps] for part in parts]
    return np.array([[*row, np.mean(row)] for row in rows])


def shared_samples(comparison: Comparison) -> float:
    """The samples at which the first of the groups' curves ends."""
    ends = [curve(comparison, group, comparison.rewards[0], None).costs["images"][-1] for group in comparison.groups]
    return float(min(ends))


def area(comparison: Comparison, group: Group, score: str) -> FloatArray:
    """As `final`, the area under the curve over samples, divided by the samples: the mean reward on the way there.

    ∫ reward d(samples) / samples by the trapezoid rule, from 0 to where the first of the groups' curves ends.
    """
    columns, until = [], shared_samples(comparison)
    for steps in [*comparison.steps, None]:
        found = curve(comparison, group, score, steps)
        columns.append([area_under(found.costs["images"], row, until) for row in found.values])
    return np.array(columns).T


def area_under(xs: FloatArray, ys: FloatArray, until: float) -> float:
    """The mean height of a piecewise linear curve over [xs[0], until]; xs ascend, [P] each."""
    inside = xs < until
    x = np.append(xs[inside], until)
    y = np.append(ys[inside], np.interp(until, xs, ys))
    if len(x) < 2:
        return float(y[-1])
    return float(((y[1:] + y[:-1]) / 2 * np.diff(x)).sum() / (x[-1] - x[0]))


def reach(comparison: Comparison, group: Group, reference: Group, score: str) -> list[float | None]:
    """Samples at which a group's mean curve first reaches the mean reward of the reference's results.

    Returns:
        By step count, then for the mean over step counts; None where it is not reached.
    """
    found = []
    for steps in [*comparison.steps, None]:
        target = float(np.mean([_value(comparison, e, score, steps) for e in reference.results]))
        own = curve(comparison, group, score, steps)
        found.append(first_crossing(own.costs["images"], own.mean, target - 1e-9 * abs(target)))  # but for rounding
    return found


def first_crossing(xs: FloatArray, ys: FloatArray, target: float) -> float | None:
    """The smallest x at which the piecewise linear curve is at least `target`; None if it never is. [P] each."""
    for i, y in enumerate(ys):
        if y >= target:
            if i == 0:
                return float(xs[0])
            part = (target - ys[i - 1]) / (y - ys[i - 1])
            return float(xs[i - 1] + part * (xs[i] - xs[i - 1]))
    return None
