"""The tables of a report as text: what training changed, and what it cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sdpo.evaluation.record import COSTS, Evaluation
from sdpo.report.formatting import decimals_for, duration, number, step_label
from sdpo.report.reader import COST_LABELS, Run
from sdpo.report.stats import BeforeAfter, Gain, SplitName, before_and_after


@dataclass(frozen=True)
class ResultRow:
    """One row of a result table.

    Attributes:
        label: number of steps in words.
        before: score of the base model.
        after: score of the tuned model.
        gain: the gain and its standard error, or why there is none.
        trend: CSS class of the gain: `up`, `down`, `even` if two standard errors cover zero, or empty without a gain.
        remark: what to know about the gain, or empty.
    """

    label: str
    before: str
    after: str
    gain: str
    trend: str = ""
    remark: str = ""


@dataclass(frozen=True)
class ResultTable:
    """One reward or judge before and after training.

    Attributes:
        name: the score's name.
        quantity: which quantity of the score the table holds.
        images: the largest number of images that a gain is computed from; 0 if there is no gain.
        rows: one row per number of steps.
    """

    name: str
    quantity: str
    images: int
    rows: list[ResultRow]


@dataclass(frozen=True)
class CostRow:
    """One row of the cost table.

    Attributes:
        label: what was spent.
        total: by the whole run.
        per_epoch: by one epoch.
        per_sample: by one sample.
    """

    label: str
    total: str = "–"
    per_epoch: str = "–"
    per_sample: str = "–"


def result_table(run: Run, name: str, split: SplitName = "seen", before: Evaluation | None = None) -> ResultTable:
    """Return the table of one reward or judge at each number of steps; judges are in percent.

    Args:
        run: the run.
        name: the score's name.
        split: which images.
        before: the evaluation to compare the tuned model with, in place of the base model's.
    """
    rows = before_and_after(run, name, split, before)
    judged = name in run.judges
    factor, unit, gain_unit = (100.0, " %", " pp") if judged else (1.0, "", "")
    errors = [factor * r.gain.standard_error for r in rows if r.gain]
    values = [factor * v for r in rows for v in (r.before, r.after) if v is not None]
    decimals = decimals_for(errors, values)
    if judged:
        decimals = min(decimals, 1)

    def score(value: float | None) -> str:
        return "–" if value is None else number(factor * value, decimals) + unit

    def result_row(row: BeforeAfter) -> ResultRow:
        label, before, after = step_label(row.steps), score(row.before), score(row.after)
        if row.gain is None:
            return ResultRow(label, before, after, "–" if row.before is None or row.after is None else "not paired")
        gain, remark = _gain_texts(row.gain, factor, decimals, gain_unit)
        return ResultRow(label, before, after, gain, _trend(row.gain), remark)

    images = max((r.gain.images for r in rows if r.gain), default=0)
    quantity = "recognised rate" if judged else "mean reward"
    return ResultTable(name, quantity, images, [result_row(row) for row in rows])


def _gain_texts(gain: Gain, factor: float, decimals: int, unit: str) -> tuple[str, str]:
    """Return a gain as text, and a remark."""
    mean, error = factor * gain.mean, factor * gain.standard_error
    if mean == 0 == error:
        return f"{number(0.0, decimals)}{unit}", "no score changed"
    plus_minus = f" ± {number(error, decimals)}" if gain.images > 1 else ""
    remark = "" if gain.significant else "within 2 s.e." if gain.enough_images else "too few images to tell"
    return f"{number(mean, decimals, sign=True)}{plus_minus}{unit}", remark


def _trend(gain: Gain) -> str:
    if not gain.significant:
        return "even"
    return "up" if gain.mean > 0 else "down"


def significant_changes(run: Run, names: list[str]) -> list[tuple[str, str]]:
    """Return at how many numbers of steps each score clearly rose or fell: pairs of name and text."""
    found = []
    for name in names:
        gains = [r.gain for r in before_and_after(run, name) if r.gain and r.gain.enough_images]
        if gains:
            up = sum(g.significant and g.mean > 0 for g in gains)
            down = sum(g.significant and g.mean < 0 for g in gains)
            fell = f" and fell at {down}" if down else ""
            found.append((name, f"rose at {up} of {len(gains)} step counts{fell}"))
    return found


def cost_rows(run: Run) -> list[CostRow]:
    """Return what the run spent; empty before the first epoch."""
    if not run.metrics:
        return []
    last, epochs = run.metrics[-1], max(1, run.last_epoch)
    images = last.get("images")
    rows = []
    for key in COSTS:
        total = last.get(key)
        if not isinstance(total, (int, float)):
            rows.append(CostRow(COST_LABELS[key]))
            continue
        each = f"{total / images:,.3g}" if isinstance(images, (int, float)) and images else "–"
        if key == "seconds":
            per_sample = "–" if each == "–" else f"{each} s"
            rows.append(CostRow(COST_LABELS[key], duration(total), _seconds(total / epochs), per_sample))
        else:
            rows.append(CostRow(COST_LABELS[key], f"{total:,.0f}", f"{total / epochs:,.4g}", each))
    return rows + _evaluation_rows(last)


def _evaluation_rows(last: Mapping[str, Any]) -> list[CostRow]:
    """Return what the evaluations spent; empty for a run of an earlier version, which did not count them."""
    rows = []
    for key in COSTS:
        total = last.get(f"evaluation/{key}")
        if isinstance(total, (int, float)):
            label = "images" if key == "images" else COST_LABELS[key]
            text = duration(total) if key == "seconds" else f"{total:,.0f}"
            rows.append(CostRow(f"evaluations: {label}", text))
    return rows


def _seconds(value: float) -> str:
    return duration(value) if value >= 90 else f"{value:.3g} s"
