"""`sdpo compare`: reads the arguments, trains or compares, and prints the tables."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sdpo.commands.compare import ComparisonResult, compare, compare_directories, plan_runs
from sdpo.commands.compare.groups import is_run, split_label
from sdpo.commands.compare.plan import PlannedRun
from sdpo.commands.compare.tables import ComparisonTable
from sdpo.config.load import DEFAULT_PRESET, preset_names, split_words
from sdpo.errors import UserError
from sdpo.estimate.cost import describe_cost
from sdpo.estimate.preflight import check_references


def run(arguments: argparse.Namespace, console: Console) -> None:
    """Run the command.

    Args:
        arguments: the parsed command line.
        console: receives the tables, notes and messages; it must not read markup.

    Raises:
        UserError: if the words name neither runs nor something to train, or the comparison fails.
    """
    words: list[str] = arguments.words
    if arguments.algorithms is not None:
        result = _train_and_compare(arguments, console)
    elif _name_directories(words):
        result = compare_directories(words, arguments.output_dir or Path("runs/comparison"), reach=arguments.reach)
    else:
        given = f"{', '.join(words)}: not a run's directory" if words else "nothing to compare"
        raise UserError(
            f"{given}. Name directories of runs (sdpo compare runs/a runs/b), or algorithms to train "
            "(sdpo compare emoji --algorithms sdpo,ddpo --seeds 3)"
        )
    if result is not None:
        _print_result(result, console)


def _name_directories(words: Sequence[str]) -> bool:
    """Return whether the words name directories, in place of a preset and its settings.

    A directory that is not a run's counts too: reading it reports what it lacks.

    Raises:
        UserError: if some words name directories and others do not.
    """
    found = [is_run(word) or (word not in preset_names() and split_label(word)[1].is_dir()) for word in words]
    if any(found) and not all(found):
        others = ", ".join(word for word, is_directory in zip(words, found, strict=True) if not is_directory)
        raise UserError(f"{others}: not a run's directory, while the other words are directories")
    return any(found)


def _train_and_compare(arguments: argparse.Namespace, console: Console) -> ComparisonResult | None:
    """Train the missing runs and compare all; a dry run prints the plan and returns None."""
    source, overrides = split_words(arguments.words)
    names = [name.strip() for name in arguments.algorithms.split(",") if name.strip()]
    output_dir = arguments.output_dir or Path("runs") / f"compare-{Path(source or DEFAULT_PRESET).stem}"
    if arguments.dry_run:
        plan = (source, overrides, names, arguments.seeds, arguments.first_seed, output_dir, arguments.variants)
        _print_plan(plan_runs(*plan), console)
        return None
    # By default SIGTERM ends Python at once; this exit unwinds, so that the child processes are ended too.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    return compare(
        source,
        overrides,
        algorithms=names,
        output_dir=output_dir,
        seeds=arguments.seeds,
        first_seed=arguments.first_seed,
        variants=arguments.variants,
        processes=arguments.processes,
        reach=arguments.reach,
        say=lambda text: console.print(text, markup=False),
    )


def _print_plan(planned: Sequence[PlannedRun], console: Console) -> None:
    """Print the cost of a run of each name, and how many epochs of each run are trained."""
    for name in dict.fromkeys(run.name for run in planned):
        runs = [run for run in planned if run.name == name]
        check_references(runs[0].config)
        console.print(f"{name}\n{describe_cost(runs[0].config)}", markup=False)
        for run in runs:
            console.print(f"{run.path}: {run.epochs_done()} of {run.config.epochs} epochs", markup=False)


def _print_result(result: ComparisonResult, console: Console) -> None:
    for table in result.tables:
        console.print(rich_table(table), "")
    for note in result.comparison.notes:
        console.print(f"note: {note}", markup=False)
    console.print(f"written to {result.page}", markup=False)


def rich_table(table: ComparisonTable) -> Table:
    """Return a table for a rich console; the best number of a column is bold."""
    # Text objects, not strings: names may hold what rich reads as markup.
    shown = Table(title=Text(table.title), caption=Text(table.about), title_justify="left", caption_justify="left")
    shown.add_column("")
    for column in table.columns:
        shown.add_column(Text(column), justify="right")
    for name, cells in table.rows:
        texts = [Text(f"{c.text} {c.beside}".strip(), style="bold" if c.best else "") for c in cells]
        shown.add_row(Text(name), *texts)
    return shown
