"""`sdpo compare`: trains what its words describe, or compares the runs that they name."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

from rich.console import Console

from sdpo.assembly.build import check_references, cost
from sdpo.commands.compare import Result, compare, compare_directories, plan_runs
from sdpo.commands.compare.groups import is_run, split_label
from sdpo.commands.compare.plan import Planned
from sdpo.commands.compare.table import terminal
from sdpo.config.load import DEFAULT_PRESET, preset_names, split_words
from sdpo.errors import UserError
from sdpo.report.reader import read_run


def run(arguments: argparse.Namespace, console: Console) -> None:
    """Run the command with the parser's arguments; what it has to say goes to the console.

    Raises:
        UserError: see `compare` and `compare_directories`.
    """
    words: list[str] = arguments.words
    if arguments.algorithms is None and _name_directories(words):
        result = compare_directories(words, arguments.output_dir or Path("runs/comparison"), reach=arguments.reach)
    elif arguments.algorithms is None:
        given = f"{', '.join(words)}: no run's directory there" if words else "nothing to compare"
        raise UserError(
            f"{given}. Name directories (sdpo compare runs/a runs/b), or algorithms to train "
            "(sdpo compare emoji --algorithms sdpo,ddpo --seeds 3)"
        )
    elif (trained := _train(arguments, console)) is None:
        return
    else:
        result = trained
    for grid in result.tables:
        console.print(terminal(grid), "")
    for note in result.comparison.notes:
        console.print(f"note: {note}", markup=False)
    console.print(f"written to {result.page}", markup=False)


def _name_directories(words: list[str]) -> bool:
    """Whether the words name directories, not a preset and its settings; `read_run` refuses those that are no run."""
    found = [is_run(word) or (word not in preset_names() and split_label(word)[1].is_dir()) for word in words]
    if any(found) and not all(found):
        others = ", ".join(word for word, is_directory in zip(words, found, strict=True) if not is_directory)
        raise UserError(f"{others}: not a run's directory, as the other words are")
    return any(found)


def _train(arguments: argparse.Namespace, console: Console) -> Result | None:
    """Train what is missing and compare; None after a dry run."""
    source, overrides = split_words(arguments.words)
    names = [name.strip() for name in arguments.algorithms.split(",") if name.strip()]
    output_dir = arguments.output_dir or Path("runs") / f"compare-{Path(source or DEFAULT_PRESET).stem}"
    if arguments.dry_run:
        plan = (source, overrides, names, arguments.seeds, arguments.first_seed, output_dir, arguments.variants)
        _describe(plan_runs(*plan), console)
        return None
    # A comparison that is killed takes its children with it: this exit unwinds, unlike the default.
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


def _describe(planned: list[Planned], console: Console) -> None:
    """How far each run is, and what one run of each name costs."""
    for name in dict.fromkeys(run.name for run in planned):
        runs = [run for run in planned if run.name == name]
        check_references(runs[0].config)
        console.print(f"{name}\n{cost(runs[0].config)}", markup=False)
        for run in runs:
            done = read_run(run.path).last_epoch if run.begun() else 0
            console.print(f"{run.path}: {done} of {run.config.epochs} epochs", markup=False)
