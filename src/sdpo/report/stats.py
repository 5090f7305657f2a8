"""Paired gains and learning curves: pure functions of a run that was read."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from sdpo.evaluation.conditions import Conditions, differences
from sdpo.evaluation.record import COSTS, Evaluation, FloatArray, ImageScores, unpaired
from sdpo.report.reader import Run

SplitName = Literal["seen", "unseen", "training"]
"""Which images: of the evaluated prompts, of unseen ones, or of the evaluated ones by the training sampler."""

_ENOUGH_IMAGES = 10  # with fewer, the standard error itself is too uncertain


@dataclass(frozen=True)
class Gain:
    """The mean difference of paired scores.

    Attributes:
        mean: mean over images of after − before.
        standard_error: std(differences, ddof=1) / √images; nan for a single image.
        images: number of pairs.
    """

    mean: float
    standard_error: float
    images: int

    @property
    def enough_images(self) -> bool:
        """Whether there are enough images to rely on the standard error."""
        return self.images >= _ENOUGH_IMAGES

    @property
    def significant(self) -> bool:
        """Whether the mean is more than two standard errors away from zero, over enough images."""
        return self.enough_images and abs(self.mean) > 2 * self.standard_error


@dataclass(frozen=True)
class BeforeAfter:
    """A score of the base and of the tuned model at one number of steps.

    Attributes:
        steps: number of sampling steps.
        before: mean score of the base model; None if it was not evaluated.
        after: mean score of the tuned model; None if it was not evaluated.
        gain: None if the images of the two models cannot be paired.
    """

    steps: int
    before: float | None
    after: float | None
    gain: Gain | None


@dataclass(frozen=True)
class CurvePoint:
    """One point of a learning curve.

    Attributes:
        epoch: the epoch of the evaluation.
        costs: what the run had spent by then, by the names in `COSTS`.
        mean: mean score.
    """

    epoch: int
    costs: dict[str, float]
    mean: float


def paired_gain(before: FloatArray, after: FloatArray) -> Gain:
    """Return the mean of after − before over images of equal prompts and seeds.

    Args:
        before: scores of the base model, [N].
        after: scores of the tuned model on the images of equal prompts and seeds in equal order, [N].

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
    """Return the names of all evaluated scores: first the trained rewards, last the judges."""
    found: dict[str, None] = {}
    for evaluation in run.evaluations:
        images = scored_images(evaluation, split)
        found.update(dict.fromkeys(images.scores if images else {}))
    if split == "seen":
        found.update(dict.fromkeys(name for row in run.metrics for name, _ in _metric_scores(row)))
    rewards = run.config.get("rewards")
    trained = [str(name) for name in rewards] if isinstance(rewards, dict) else []
    judges = run.judges
    return sorted(found, key=lambda n: (n in judges, n not in trained, trained.index(n) if n in trained else 0))


def step_counts(run: Run) -> list[int]:
    """Return all evaluated numbers of steps, ascending."""
    counts = {steps for e in run.evaluations for by_steps in e.seen.scores.values() for steps in by_steps}
    counts |= {steps for e in run.evaluations if e.unseen for b in e.unseen.scores.values() for steps in b}
    counts |= {steps for row in run.metrics for _, steps in _metric_scores(row)}
    return sorted(counts)


def has_unseen(run: Run) -> bool:
    """Whether any evaluation also scored unseen prompts."""
    return bool(score_names(run, "unseen"))


def different_images(run: Run) -> list[str]:
    """Return what differs between the base and the tuned model's images besides the weights; empty for pairs."""
    return unpaired(run.base, run.tuned) if run.base is not None and run.tuned is not None else []


def before_and_after(
    run: Run, name: str, split: SplitName = "seen", before: Evaluation | None = None
) -> list[BeforeAfter]:
    """Return a score of the base and of the tuned model at each number of steps, ascending.

    Args:
        run: the run.
        name: the score's name.
        split: which images.
        before: the evaluation to compare the tuned model with, in place of the base model's.
    """
    earlier = before or run.base
    base = scored_images(earlier, split) if earlier else None
    tuned = scored_images(run.tuned, split) if run.tuned else None
    first, last = (base.scores.get(name, {}) if base else {}), (tuned.scores.get(name, {}) if tuned else {})
    pairable = base is not None and tuned is not None and (base.prompts, base.seeds) == (tuned.prompts, tuned.seeds)
    pairable = pairable and not differences(_conditions(earlier, split), _conditions(run.tuned, split))
    rows = []
    for steps in sorted(first.keys() | last.keys()):
        old, new = first.get(steps), last.get(steps)
        gain = None
        if pairable and old is not None and new is not None and len(old) == len(new) > 0:
            gain = paired_gain(old, new)
        rows.append(BeforeAfter(steps, _mean(old), _mean(new), gain))
    return rows


def learning_curve(run: Run, name: str, steps: int, split: SplitName = "seen") -> list[CurvePoint]:
    """Return the mean score at one number of steps after each evaluated epoch.

    A mean that only the metrics have, because the evaluation's own file is missing, is taken from there.
    """
    points: dict[int, CurvePoint] = {}
    if split == "seen":
        for row in run.metrics:
            value = row.get(f"eval/{name}/{steps}")
            if isinstance(value, (int, float)) and row["epoch"] not in run.left_out:
                costs = {key: float(row[key]) for key in COSTS if isinstance(row.get(key), (int, float))}
                points[int(row["epoch"])] = CurvePoint(int(row["epoch"]), costs, float(value))
    for evaluation in run.evaluations:
        images = scored_images(evaluation, split)
        mean = _mean(images.scores.get(name, {}).get(steps)) if images else None
        if mean is not None:
            points[evaluation.epoch] = CurvePoint(evaluation.epoch, evaluation.costs, mean)
    return [points[epoch] for epoch in sorted(points)]


def average_neighbours(xs: list[float], ys: list[float], limit: int = 240) -> tuple[list[float], list[float], int]:
    """Average runs of neighbouring points until there are at most `limit`.

    Args:
        xs: horizontal positions, [P].
        ys: vertical positions, [P].
        limit: the largest number of points to return.

    Returns:
        Horizontal positions, vertical positions, and how many points were averaged into one.
    """
    size = math.ceil(len(xs) / limit) if xs else 1
    if size <= 1:
        return xs, ys, 1
    starts = range(0, len(xs), size)
    return [float(np.mean(xs[i : i + size])) for i in starts], [float(np.mean(ys[i : i + size])) for i in starts], size


def scored_images(evaluation: Evaluation, split: SplitName) -> ImageScores | None:
    """Return the scores of some of an evaluation's images; None if there are none."""
    if split == "training":
        return evaluation.training_sampler.scores if evaluation.training_sampler is not None else None
    return evaluation.seen if split == "seen" else evaluation.unseen


def _conditions(evaluation: Evaluation | None, split: SplitName) -> Conditions | None:
    if evaluation is None or split != "training":
        return evaluation.conditions if evaluation is not None else None
    return evaluation.training_sampler.conditions if evaluation.training_sampler is not None else None


def _mean(values: FloatArray | None) -> float | None:
    return float(values.mean()) if values is not None and len(values) else None


def _metric_scores(row: dict[str, object]) -> list[tuple[str, int]]:
    """Return the name and the number of steps of each `eval/<name>/<steps>` key in a metrics row."""
    found = []
    for key in row:
        name, _, steps = key.removeprefix("eval/").rpartition("/")
        if key.startswith("eval/") and name and steps.isdigit():
            found.append((name, int(steps)))
    return found
