"""The tables of a comparison: final scores, gains, areas, samples to reach a reward."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sdpo.commands.compare.comparison import Comparison, over_seeds
from sdpo.commands.compare.groups import RunGroup
from sdpo.commands.compare.measures import areas, base_scores, final_scores, gains, samples_to_reach, std_over_seeds
from sdpo.errors import UserError
from sdpo.evaluation.record import FloatArray
from sdpo.report.formatting import decimals_for, number, step_label
from sdpo.report.stats import SplitName

BASE = "base model"
DEFAULT_REACH = "ddpo"


@dataclass(frozen=True)
class Cell:
    """One cell of a table.

    Attributes:
        text: the number.
        beside: smaller text beside the number, such as the standard deviation; may be empty.
        best: whether the number is the best of its column.
    """

    text: str
    beside: str = ""
    best: bool = False


@dataclass(frozen=True)
class ComparisonTable:
    """One table: a row per group, a column per number of steps and one for their mean.

    Attributes:
        title: the quantity and the score.
        about: how the numbers were computed.
        columns: the columns' headings, [C].
        rows: pairs of group name and cells, [C].
    """

    title: str
    about: str
    columns: list[str]
    rows: list[tuple[str, list[Cell]]]


def make_tables(comparison: Comparison, reference: RunGroup | None) -> list[ComparisonTable]:
    """Return all tables.

    Args:
        comparison: the comparison.
        reference: the group whose final reward is the target of the table of samples to reach it; None leaves that
            table out.
    """
    tables = []
    over = over_seeds(comparison, "mean ± std")
    all_images = f"all images of the last evaluation, {over}"
    for name in comparison.rewards:
        tables.append(_final_table(comparison, name, f"Final {name}", all_images))
        gained = [gains(comparison, group, name) for group in comparison.groups]
        about = f"over the base model on the same images, {over}"
        tables.append(_table(comparison, f"Gain in {name}", about, gained, sign=True))
        under = [areas(comparison, group, name) for group in comparison.groups]
        about = f"mean {name} over the samples drawn (trapezoids), {over}"
        tables.append(_table(comparison, f"Area under the curve of {name}", about, under))
        if reference is not None:
            tables.append(_reach_table(comparison, reference, name))
        if _has_unseen(comparison, name):
            title = f"Final {name} on prompts not trained on"
            tables.append(_final_table(comparison, name, title, all_images, "unseen"))
    for name in comparison.judges:
        tables.append(_final_table(comparison, name, f"{name}: recognised, %", all_images))
    return tables


def find_reference(comparison: Comparison, name: str | None) -> RunGroup | None:
    """Return the group whose final reward is the target of the table of samples to reach it.

    Args:
        comparison: the comparison.
        name: the group's name; None is `ddpo`, or no group if none has that name.

    Raises:
        UserError: if no group has the name.
    """
    found = comparison.group(name or DEFAULT_REACH)
    if name is not None and found is None:
        names = ", ".join(group.name for group in comparison.groups)
        raise UserError(f"--reach {name}: not one of the compared names ({names})")
    return found


def _columns(comparison: Comparison) -> list[str]:
    return [*(step_label(s) for s in comparison.steps), "mean"]


def _has_unseen(comparison: Comparison, name: str) -> bool:
    ends = [e for group in comparison.groups for run in group.runs for e in (run.base, run.tuned) if e]
    return all(e.unseen and set(comparison.steps) <= e.unseen.scores.get(name, {}).keys() for e in ends)


def _final_table(
    comparison: Comparison, name: str, title: str, about: str, split: SplitName = "seen"
) -> ComparisonTable:
    """Return the groups' final scores below those of the base model; judges are in percent."""
    factor = 100.0 if name in comparison.judges else 1.0
    values = [factor * final_scores(comparison, group, name, split) for group in comparison.groups]
    table = _table(comparison, title, about, values)
    before = np.concatenate([factor * base_scores(comparison, group, name, split) for group in comparison.groups])
    decimals = _decimals(values)
    # All runs should begin with one model, up to rounding, which depends on the number of threads.
    equal = np.ptp(before, axis=0) <= 1e-4 * np.abs(before).max(axis=0)
    cells = []
    for column, alike in zip(before.T, equal, strict=True):
        beside = "" if alike else f"± {number(float(column.std(ddof=1)), decimals)}"
        cells.append(Cell(number(float(column.mean()), decimals), beside))
    return ComparisonTable(table.title, table.about, table.columns, [(BASE, cells), *table.rows])


def _decimals(values: Sequence[FloatArray]) -> int:
    means = [float(m) for v in values for m in v.mean(axis=0)]
    return decimals_for([float(s) for v in values for s in std_over_seeds(v)], means)


def _table(
    comparison: Comparison, title: str, about: str, values: Sequence[FloatArray], sign: bool = False
) -> ComparisonTable:
    """Return a table of means and standard deviations over seeds; the largest mean of a column is its best.

    Args:
        comparison: the comparison.
        title: the table's title.
        about: how the numbers were computed.
        values: one array per group, [S, C].
        sign: whether positive numbers have a plus sign.
    """
    decimals = _decimals(values)
    means = np.array([v.mean(axis=0) for v in values])
    texts = [[number(float(m), decimals, sign=sign) for m in mean] for mean in means]
    best = [
        texts[top][i] if [row[i] for row in texts].count(texts[top][i]) == 1 else None  # none if two are printed alike
        for i, top in enumerate(means.argmax(axis=0))
    ]
    rows = []
    for group, shown, std in zip(comparison.groups, texts, map(std_over_seeds, values), strict=True):
        beside = [f"± {number(float(s), decimals)}" if math.isfinite(s) else "" for s in std]
        alone = len(texts) == 1
        cells = [Cell(t, b, t == top and not alone) for t, b, top in zip(shown, beside, best, strict=True)]
        rows.append((group.name, cells))
    return ComparisonTable(title, about, _columns(comparison), rows)


def _reach_table(comparison: Comparison, reference: RunGroup, name: str) -> ComparisonTable:
    total = float(np.mean([e.costs["images"] for e in reference.results]))
    found = [samples_to_reach(comparison, group, reference, name) for group in comparison.groups]
    gained = (gains(comparison, reference, name).mean(axis=0) > 0).tolist()
    fewest = [
        min((x for x in column if x is not None), default=None) if up else None
        for column, up in zip(zip(*found, strict=True), gained, strict=True)
    ]
    rows = []
    for group, values in zip(comparison.groups, found, strict=True):
        cells = []
        for x, best, up in zip(values, fewest, gained, strict=True):
            if not up:
                cells.append(Cell("–"))
            elif x is None:
                cells.append(Cell("not reached"))
            else:
                cells.append(Cell(f"{x:,.0f}", f"({x / max(total, 1):.0%})", x == best and len(found) > 1))
        rows.append((group.name, cells))
    about = (
        f"where the mean curve first reaches the {name} of {reference.name}'s result, between evaluations on a "
        f"straight line; in brackets the share of the {total:,.0f} samples of that result"
        + ("" if all(gained) else f"; – where {reference.name} gained nothing")
    )
    return ComparisonTable(f"Samples to reach {reference.name}'s final {name}", about, _columns(comparison), rows)
