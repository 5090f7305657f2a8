"""Compares algorithms and settings over seeds: trains what is missing, and writes the figure, the tables and a page."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sdpo.commands.compare.execute import Say, train_missing
from sdpo.commands.compare.figures import draw_comparison
from sdpo.commands.compare.groups import Group, group_directories, make_group
from sdpo.commands.compare.measures import Comparison, comparable, curve
from sdpo.commands.compare.page import render_comparison
from sdpo.commands.compare.plan import Planned, plan_runs
from sdpo.commands.compare.table import Grid, find_reference, markdown, tables
from sdpo.errors import UserError
from sdpo.report.reader import COSTS, read_run
from sdpo.system.durable import write_whole

__all__ = [
    "Comparison",
    "Group",
    "Planned",
    "Result",
    "compare",
    "compare_directories",
    "plan_runs",
    "write_comparison",
]


@dataclass(frozen=True)
class Result:
    """What a comparison found.

    Attributes:
        page: the HTML page; the other files lie beside it.
        comparison: the runs by group, and what they have in common.
        tables: the numbers, as text.
    """

    page: Path
    comparison: Comparison
    tables: list[Grid]


def compare(
    source: str | None = None,
    overrides: Sequence[str] = (),
    *,
    algorithms: Sequence[str],
    output_dir: str | Path,
    seeds: int = 3,
    first_seed: int = 42,
    variants: str | Path | None = None,
    processes: int = 1,
    reach: str | None = None,
    say: Say = print,
) -> Result:
    """Train the runs that are missing and compare all.

    Args:
        source: a preset's name or a YAML file; None is the preset `emoji`.
        overrides: strings `section.key=value` for all runs.
        algorithms: names of algorithms or variants.
        output_dir: where the comparison is written; its runs lie in `output_dir/runs`.
        seeds: how many.
        first_seed: the others follow it.
        variants: a YAML file of named variants, name → overrides.
        processes: runs that train at once.
        reach: the name whose final reward the others are to reach; None is `ddpo` where it is one of them.
        say: is told of each run's beginning and end.

    Raises:
        UserError: see `plan_runs`; or if a directory holds a run made with other settings (nothing is trained then), or
            a run failed (the others are trained and compared all the same).
    """
    if reach is not None and reach not in algorithms:
        raise UserError(f"--reach {reach}: it is none of {', '.join(algorithms)}")
    file = None if variants is None else Path(variants)
    planned = plan_runs(source, overrides, algorithms, seeds, first_seed, Path(output_dir), file)
    failed = train_missing(planned, processes, say)
    groups = []
    for name in algorithms:
        paths = [run.path for run in planned if run.name == name and run.path.name not in failed]
        if paths:
            groups.append(make_group(name, [read_run(path) for path in paths]))
    messages = "\n".join(f"{name}: {message}" for name, message in failed.items())
    if not groups:
        raise UserError(f"every run failed; there is nothing to compare\n{messages}")
    there = reach if reach in [group.name for group in groups] else None
    result = write_comparison(groups, output_dir, reach=there)
    if failed:
        raise UserError(f"{len(failed)} of {len(planned)} runs failed; {result.page} compares the others\n{messages}")
    return result


def compare_directories(
    directories: Sequence[str | Path], output_dir: str | Path, *, reach: str | None = None
) -> Result:
    """Compare runs that are there.

    Args:
        directories: of runs, each `DIR` or `LABEL=DIR`. Runs with one label, or with settings that differ in the seed
            alone, are averaged.
        output_dir: where the comparison is written.
        reach: the name whose final reward the others are to reach; None is `ddpo` where it is one of them.

    Raises:
        UserError: if one is not a run's directory, was not evaluated, or they have nothing in common.
    """
    return write_comparison(group_directories([str(d) for d in directories]), output_dir, reach=reach)


def write_comparison(groups: Sequence[Group], output_dir: str | Path, *, reach: str | None = None) -> Result:
    """Write `comparison.html`, `.md` and `.csv`, `compare.png`, `compare_queries.png` and `compare_evaluations.png`.

    Raises:
        UserError: if the groups have nothing in common, or `output_dir` cannot be written.
    """
    comparison = comparable(groups)
    grids = tables(comparison, find_reference(comparison, reach))
    folder = Path(output_dir)
    page = folder / "comparison.html"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        draw_comparison(comparison, "images", folder / "compare.png")
        draw_comparison(comparison, "reward_queries", folder / "compare_queries.png")
        draw_comparison(comparison, "denoiser_evaluations", folder / "compare_evaluations.png")
        _write_csv(comparison, folder / "comparison.csv")
        notes = "".join(f"- {note}\n" for note in comparison.notes)
        text = "\n".join(
            ["# " + ", ".join(g.name for g in groups) + "\n", *([notes] if notes else []), *map(markdown, grids)]
        )
        write_whole(folder / "comparison.md", text)
        write_whole(page, render_comparison(comparison, grids))
    except OSError as error:
        raise UserError(f"--output-dir {folder} cannot be written: {error}") from error
    return Result(page, comparison, grids)


def _write_csv(comparison: Comparison, path: Path) -> None:
    """One row a run, step count, evaluation and score; the values are those of the curves."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["name", "seed", "steps", "epoch", *COSTS, "reward", "value"])
        for group in comparison.groups:
            for run, seed in zip(group.runs, group.seeds, strict=True):
                alone = Group(group.name, [run])
                for steps in comparison.steps:
                    for score in [*comparison.rewards, *comparison.judges]:
                        found = curve(comparison, alone, score, steps)
                        for i, (epoch, value) in enumerate(zip(found.epochs, found.mean, strict=True)):
                            spent = [f"{found.costs[key][i]:.10g}" for key in COSTS]
                            writer.writerow([group.name, seed, steps, epoch, *spent, score, f"{value:.10g}"])
