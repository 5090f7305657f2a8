"""The tables of a comparison, as data; and the same as Markdown, as HTML and for the terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from rich.table import Table
from rich.text import Text

from sdpo.commands.compare.groups import Group
from sdpo.commands.compare.measures import Comparison, area, base, final, gain, over_seeds, reach, spread
from sdpo.errors import UserError
from sdpo.report.looks import decimals_for, number, step_label
from sdpo.report.reader import FloatArray
from sdpo.report.stats import SplitName

BASE = "base model"
DEFAULT_REACH = "ddpo"


@dataclass(frozen=True)
class Cell:
    """A number as text, what stands smaller beside it, and whether it is the best of its column."""

    text: str
    beside: str = ""
    best: bool = False


@dataclass(frozen=True)
class Grid:
    """One table: a row a name, a column a step count and one for their mean."""

    title: str
    about: str
    columns: list[str]
    rows: list[tuple[str, list[Cell]]]


def tables(comparison: Comparison, reference: Group | None) -> list[Grid]:
    """All tables.

    Args:
        comparison: what is compared.
        reference: whose final reward the others are to reach; None leaves that table out.
    """
    grids = []
    over = over_seeds(comparison, "mean ± std")
    for name in comparison.rewards:
        grids.append(_final(comparison, name, f"Final {name}", f"all images of the last evaluation, {over}"))
        gains = [gain(comparison, group, name) for group in comparison.groups]
        grids.append(
            _grid(comparison, f"Gain in {name}", f"over the base model on the same images, {over}", gains, True)
        )
        areas = [area(comparison, group, name) for group in comparison.groups]
        about = f"mean {name} over the samples drawn (trapezoids), {over}"
        grids.append(_grid(comparison, f"Area under the curve of {name}", about, areas))
        if reference is not None:
            grids.append(_reach(comparison, reference, name))
        if _has_unseen(comparison, name):
            about = f"all images of the last evaluation, {over}"
            grids.append(_final(comparison, name, f"Final {name} on prompts not trained on", about, "unseen"))
    for name in comparison.judges:
        grids.append(_final(comparison, name, f"{name}: recognised, %", f"all images of the last evaluation, {over}"))
    return grids


def find_reference(comparison: Comparison, name: str | None) -> Group | None:
    """The group that the others are to reach: that of the name, or `ddpo` where there is one.

    Raises:
        UserError: if there is none of the name.
    """
    found = comparison.group(name or DEFAULT_REACH)
    if name is not None and found is None:
        there = ", ".join(group.name for group in comparison.groups)
        raise UserError(f"--reach {name}: there is no {name} in this comparison; there are: {there}")
    return found


def _columns(comparison: Comparison) -> list[str]:
    return [*(step_label(s) for s in comparison.steps), "mean"]


def _has_unseen(comparison: Comparison, name: str) -> bool:
    parts = [e.unseen for group in comparison.groups for run in group.runs for e in (run.base, run.tuned) if e]
    return all(part and set(comparison.steps) <= part.scores.get(name, {}).keys() for part in parts)


def _final(comparison: Comparison, name: str, title: str, about: str, split: SplitName = "seen") -> Grid:
    """Final scores below those of the base model, which all runs should begin with."""
    factor = 100.0 if name in comparison.judges else 1.0
    values = [factor * final(comparison, group, name, split) for group in comparison.groups]
    grid = _grid(comparison, title, about, values)
    before = np.concatenate([factor * base(comparison, group, name, split) for group in comparison.groups])
    decimals = _decimals(values)
    # Rounding, which the number of threads may change, is no difference.
    same = np.ptp(before, axis=0) <= 1e-4 * np.abs(before).max(axis=0)
    cells = [
        Cell(
            number(float(column.mean()), decimals), "" if alike else f"± {number(float(column.std(ddof=1)), decimals)}"
        )
        for column, alike in zip(before.T, same, strict=True)
    ]
    return Grid(grid.title, grid.about, grid.columns, [(BASE, cells), *grid.rows])


def _decimals(values: Sequence[FloatArray]) -> int:
    means = [float(m) for v in values for m in v.mean(axis=0)]
    return decimals_for([float(s) for v in values for s in spread(v)], means)


def _grid(comparison: Comparison, title: str, about: str, values: Sequence[FloatArray], sign: bool = False) -> Grid:
    """A row of means and spreads for each group's [S, C] values; the largest mean of a column is its best."""
    decimals = _decimals(values)
    means = np.array([v.mean(axis=0) for v in values])
    rows = []
    texts = [[number(float(m), decimals, sign=sign) for m in mean] for mean in means]
    best = [
        texts[top][i] if [row[i] for row in texts].count(texts[top][i]) == 1 else None  # as printed, no tie
        for i, top in enumerate(means.argmax(axis=0))
    ]
    for group, shown, std in zip(comparison.groups, texts, map(spread, values), strict=True):
        beside = [f"± {number(float(s), decimals)}" if math.isfinite(s) else "" for s in std]
        alone = len(texts) == 1
        cells = [Cell(t, b, t == top and not alone) for t, b, top in zip(shown, beside, best, strict=True)]
        rows.append((group.name, cells))
    return Grid(title, about, _columns(comparison), rows)


def _reach(comparison: Comparison, reference: Group, name: str) -> Grid:
    total = float(np.mean([e.costs["images"] for e in reference.results]))
    found = [reach(comparison, group, reference, name) for group in comparison.groups]
    columns = list(zip(*found, strict=True))
    gained = gain(comparison, reference, name).mean(axis=0) > 0
    fewest = [
        min((x for x in column if x is not None), default=None) if up else None
        for column, up in zip(columns, gained, strict=True)
    ]
    rows = []
    for group, values in zip(comparison.groups, found, strict=True):
        cells = [
            Cell("–")
            if not up
            else Cell("not reached")
            if x is None
            else Cell(f"{x:,.0f}", f"({x / max(total, 1):.0%})", x == best and len(found) > 1)
            for x, best, up in zip(values, fewest, gained, strict=True)
        ]
        rows.append((group.name, cells))
    about = (
        f"where the mean curve first reaches the {name} of {reference.name}'s result, between evaluations on a "
        f"straight line; in brackets the share of the {total:,.0f} samples of that result"
        + ("" if gained.all() else f"; – where {reference.name} gained nothing")
    )
    return Grid(f"Samples to reach {reference.name}'s final {name}", about, _columns(comparison), rows)


def markdown(grid: Grid) -> str:
    """A GitHub table under a heading; the best of a column in bold."""

    def cell(c: Cell) -> str:
        return f"**{c.text}** {c.beside}".strip() if c.best else f"{c.text} {c.beside}".strip()

    lines = [f"| | {' | '.join(grid.columns)} |", "|---" * (len(grid.columns) + 1) + "|"]
    lines += [f"| {_plain(name)} | {' | '.join(map(cell, cells))} |" for name, cells in grid.rows]
    return f"## {_plain(grid.title)}\n\n{_plain(grid.about)}\n\n" + "\n".join(lines) + "\n"


def _plain(text: str) -> str:
    """Text without a meaning in Markdown."""
    for sign in "\\`*_[]<>|":
        text = text.replace(sign, f"\\{sign}")
    return text


def html(grid: Grid) -> str:
    """A table with its title as caption."""
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in ("", *grid.columns))
    body = "".join(
        f'<tr><th scope="row">{escape(name)}</th>{"".join(map(_html_cell, cells))}</tr>' for name, cells in grid.rows
    )
    return (
        f'<div class="scroll"><table class="compared">'
        f"<caption><b>{escape(grid.title)}</b><br>{escape(grid.about)}</caption>"
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _html_cell(cell: Cell) -> str:
    beside = f"<small>{escape(cell.beside)}</small>" if cell.beside else ""
    return f"<td>{'<b>' * cell.best}{escape(cell.text)}{'</b>' * cell.best}{beside}</td>"


def terminal(grid: Grid) -> Table:
    """For a rich console; the best of a column in bold."""
    # Texts, not strings: names may hold what rich takes for markup, and the command line's console takes none.
    table = Table(title=Text(grid.title), caption=Text(grid.about), title_justify="left", caption_justify="left")
    table.add_column("")
    for column in grid.columns:
        table.add_column(Text(column), justify="right")
    for name, cells in grid.rows:
        shown = [Text(f"{c.text} {c.beside}".strip(), style="bold" if c.best else "") for c in cells]
        table.add_row(Text(name), *shown)
    return table
