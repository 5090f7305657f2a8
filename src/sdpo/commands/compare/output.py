"""Writes the files of a comparison: the page, the tables as Markdown, the curves as CSV, and the figures."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sdpo.commands.compare.comparison import Comparison, make_comparison
from sdpo.commands.compare.figures import draw_comparison
from sdpo.commands.compare.groups import RunGroup
from sdpo.commands.compare.measures import group_curve
from sdpo.commands.compare.page import render_comparison
from sdpo.commands.compare.tables import ComparisonTable, find_reference, make_tables
from sdpo.errors import UserError, cause
from sdpo.evaluation.record import COSTS
from sdpo.report.templating import is_page
from sdpo.system.durable import write_whole
from sdpo.system.log import is_main_process
from sdpo.system.replaceable import check_replaceable

_FIGURES = {
    "images": "compare.png",
    "reward_queries": "compare_queries.png",
    "denoiser_evaluations": "compare_evaluations.png",
}
_PAGE, _TABLES, _CURVES = "comparison.html", "comparison.md", "comparison.csv"


@dataclass(frozen=True)
class ComparisonResult:
    """A comparison that was written.

    Attributes:
        page: the HTML page; the other files are beside it.
        comparison: the groups of runs and what they have in common.
        tables: the numbers as text.
    """

    page: Path
    comparison: Comparison
    tables: list[ComparisonTable]


def check_folder(folder: Path) -> None:
    """Refuse a folder with files of a comparison's names that no comparison wrote.

    Raises:
        UserError: naming the first of them.
    """
    if not is_page(folder / _PAGE):
        for name in (*_FIGURES.values(), _CURVES, _TABLES, _PAGE):
            if (folder / name).exists():
                check_replaceable(folder / name, "--output-dir:", lambda _: False)


def write_comparison(
    groups: Sequence[RunGroup], output_dir: str | Path, *, reach: str | None = None
) -> ComparisonResult:
    """Write `comparison.html`, `.md` and `.csv`, `compare.png`, `compare_queries.png` and `compare_evaluations.png`.

    Args:
        groups: the groups of runs.
        output_dir: folder of the files; it is made if it does not exist.
        reach: the name whose final reward is the target of the table of samples to reach it; None is `ddpo` if a group
            has that name.

    Raises:
        UserError: if the groups have nothing in common, no group has the name `reach`, or `output_dir` cannot be
            written, or holds files of these names that no comparison wrote.
    """
    comparison = make_comparison(groups)
    tables = make_tables(comparison, find_reference(comparison, reach))
    folder = Path(output_dir)
    page = folder / _PAGE
    check_folder(folder)
    if not is_main_process():
        return ComparisonResult(page, comparison, tables)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for cost, name in _FIGURES.items():
            draw_comparison(comparison, cost, folder / name)
        _write_csv(comparison, folder / _CURVES)
        write_whole(folder / _TABLES, _markdown(comparison, tables))
        write_whole(page, render_comparison(comparison, tables))
    except OSError as error:
        raise UserError(f"--output-dir {folder} cannot be written: {cause(error)}") from error
    return ComparisonResult(page, comparison, tables)


def _write_csv(comparison: Comparison, path: Path) -> None:
    """Write the curves: one row per run, number of steps, evaluation and score."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["name", "seed", "steps", "epoch", *COSTS, "reward", "value"])
        for group in comparison.groups:
            for run, seed in zip(group.runs, group.seeds, strict=True):
                alone = RunGroup(group.name, [run])
                for steps in comparison.steps:
                    for score in comparison.scores:
                        found = group_curve(comparison, alone, score, steps)
                        for i, (epoch, value) in enumerate(zip(found.epochs, found.mean, strict=True)):
                            spent = [f"{found.costs[key][i]:.10g}" for key in COSTS]
                            writer.writerow([group.name, seed, steps, epoch, *spent, score, f"{value:.10g}"])


def _markdown(comparison: Comparison, tables: Sequence[ComparisonTable]) -> str:
    title = "# " + ", ".join(group.name for group in comparison.groups) + "\n"
    drawn = {run.sampler for group in comparison.groups for run in group.runs if run.evaluations[-1].conditions}
    sampler = [f"Images are drawn by {text}." for text in drawn] if len(drawn) == 1 else []
    notes = "".join(f"- {note}\n" for note in [*sampler, *comparison.notes])
    return "\n".join([title, *([notes] if notes else []), *map(_markdown_table, tables)])


def _markdown_table(table: ComparisonTable) -> str:
    """Return a GitHub table below a heading; the best number of a column is bold."""
    lines = [f"| | {' | '.join(table.columns)} |", "|---" * (len(table.columns) + 1) + "|"]
    for name, cells in table.rows:
        shown = [f"{f'**{c.text}**' if c.best else c.text} {c.beside}".strip() for c in cells]
        lines.append(f"| {_without_markdown(name)} | {' | '.join(shown)} |")
    heading = f"## {_without_markdown(table.title)}\n\n{_without_markdown(table.about)}\n\n"
    return heading + "\n".join(lines) + "\n"


def _without_markdown(text: str) -> str:
    """Escape the characters that Markdown gives a meaning."""
    for sign in "\\`*_[]<>|":
        text = text.replace(sign, f"\\{sign}")
    return text
