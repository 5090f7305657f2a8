"""Groups of runs and what they have in common: rewards, step counts and images to compare them by."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sdpo.commands.compare.groups import RunGroup
from sdpo.errors import UserError
from sdpo.evaluation.conditions import differences
from sdpo.evaluation.record import COSTS, Evaluation, ImageScores
from sdpo.report.reader import COST_LABELS, Run
from sdpo.report.stats import score_names


@dataclass(frozen=True)
class Comparison:
    """Groups of runs and what they can be compared by.

    Attributes:
        groups: the groups in the order of figures and tables.
        rewards: scores that all evaluations have, without the judges.
        judges: scores that all evaluations have and that are 1 where the image was recognised and 0 elsewhere.
        steps: numbers of steps that all evaluations have, ascending.
        images: number of leading images per number of steps that all evaluations have.
        notes: sentences on what limits the comparison.
    """

    groups: list[RunGroup]
    rewards: list[str]
    judges: list[str]
    steps: list[int]
    images: int
    notes: list[str]

    @property
    def scores(self) -> list[str]:
        """The rewards, then the judges."""
        return [*self.rewards, *self.judges]

    def group(self, name: str) -> RunGroup | None:
        """Return the group with a name, or None."""
        return next((group for group in self.groups if group.name == name), None)


def make_comparison(groups: Sequence[RunGroup]) -> Comparison:
    """Return what groups of runs can be compared by.

    Raises:
        UserError: if a run was not evaluated before and after training, the costs of one of these evaluations are
            unknown, or the runs share no reward, no number of steps or no image.
    """
    runs = [run for group in groups for run in group.runs]
    for run in runs:
        _check_evaluated(run)
    evaluated = [e.seen for run in runs for e in run.evaluations]
    names = [n for n in score_names(runs[0]) if all(n in e.scores for e in evaluated)]
    all_judges = set().union(*(run.judges for run in runs))
    rewards, judges = [n for n in names if n not in all_judges], [n for n in names if n in all_judges]
    if not rewards:
        raise UserError("the runs share no reward: " + _listed(runs, lambda e: list(e.seen.scores)))
    steps = sorted(set[int].intersection(*(set(e.scores[n]) for e in evaluated for n in names)))
    if not steps:
        raise UserError("the runs share no step count: " + _listed(runs, lambda e: sorted(e.seen.scores[rewards[0]])))
    images = min(len(e.scores[n][s]) for e in evaluated for n in names for s in steps)
    if not images:
        raise UserError("an evaluation holds no image: there is nothing to compare")
    return Comparison(list(groups), rewards, judges, steps, images, _notes(groups, evaluated, images))


def _check_evaluated(run: Run) -> None:
    """Reject a run that lacks an evaluation before or after training, or the costs of one of the two.

    Raises:
        UserError: if something is missing.
    """
    if run.base is None or run.tuned is None:
        when = "after training: repeat its train command to finish it" if run.base else "before training (epoch 0)"
        raise UserError(f"{run.path} has no evaluation {when}; it cannot be compared")
    missing = [COST_LABELS[key] for key in COSTS if key not in run.base.costs or key not in run.tuned.costs]
    if missing:
        raise UserError(
            f"{run.path} does not say what it spent ({', '.join(missing)}): these numbers belong into the evaluation's "
            f"file, or into the row of epoch {run.tuned.epoch} in {run.directory.metrics.name}"
        )


def _listed(runs: Sequence[Run], values: Callable[[Evaluation], Sequence[object]]) -> str:
    """Return the values of each run's last evaluation; runs with equal values are listed together."""
    found: dict[str, list[str]] = {}
    for run in runs:
        found.setdefault(", ".join(map(str, values(run.evaluations[-1]))), []).append(run.name)
    return "; ".join(f"{', '.join(names)}: {text}" for text, names in found.items())


def _notes(groups: Sequence[RunGroup], evaluated: Sequence[ImageScores], images: int) -> list[str]:
    notes = [note for group in groups for run in group.runs for note in _run_notes(run)]
    drawn = [(e.prompts[:images], e.seeds[:images]) for e in evaluated]
    if any(one != drawn[0] for one in drawn):
        notes.append("The runs were evaluated on different prompts or seeds: compare their rewards with care.")
    samplers = dict.fromkeys(run.sampler for group in groups for run in group.runs)
    if len(samplers) > 1:
        notes.append(f"The runs were evaluated by different samplers: {'; '.join(samplers)}.")
    else:
        conditions = [run.evaluations[-1].conditions for group in groups for run in group.runs]
        different = dict.fromkeys(reason for other in conditions for reason in differences(conditions[0], other))
        if different:
            notes.append(f"The conditions of the evaluations differ: {'; '.join(different)}.")
    spent = {group.name: _fewest_samples(group) for group in groups}
    if len(set(spent.values())) > 1:
        listed = ", ".join(f"{name} {count:,.0f}" for name, count in spent.items())
        notes.append(f"The runs drew different numbers of samples: {listed}. Areas end where the shortest does.")
    if len({tuple(group.seeds) for group in groups}) > 1:
        listed = ", ".join(f"{group.name} {' '.join(map(str, group.seeds))}" for group in groups)
        notes.append(f"The seeds differ: {listed}.")
    return notes


def _run_notes(run: Run) -> list[str]:
    planned = run.config.get("epochs")
    notes = [f"{run.name}: {note}" for note in run.notes]
    if run.stopped.get("text"):
        return [f"{run.name}: {run.stopped['text']}", *notes]
    if isinstance(planned, int) and run.last_epoch < planned:
        return [f"{run.name} is unfinished: epoch {run.last_epoch} of {planned}.", *notes]
    return notes


def _fewest_samples(group: RunGroup) -> float:
    return min(run.evaluations[-1].costs.get("images", 0.0) for run in group.runs)


def over_seeds(comparison: Comparison, statistic: str) -> str:
    """Return a statistic with the number of seeds it is over; a single seed has no statistic.

    Args:
        comparison: the comparison.
        statistic: words for the statistic, such as `mean ± std`.
    """
    counts = sorted({len(group.runs) for group in comparison.groups})
    if counts == [1]:
        return "1 seed"
    return f"{statistic} over {' to '.join(map(str, counts[:: max(1, len(counts) - 1)]))} seeds"
