"""`sdpo signal`: reads the arguments, measures, and prints tables and a recommendation."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from sdpo.cli.output import say
from sdpo.commands.signal import (
    BRANCHING,
    WRITTEN,
    Options,
    SignalResult,
    measure_signal,
    paths,
    read_words,
    recommend,
    save_result,
    signal_json,
)
from sdpo.commands.signal.alternatives import CONFIGURED, CREDITS, FINAL
from sdpo.commands.signal.measured import Measured
from sdpo.errors import UserError
from sdpo.method.signal import groups_needed
from sdpo.system.replaceable import check_replaceable, holds_json

_SHOWN = 100  # trajectories, at which numbers of branches are compared
_FAR = 1e6  # groups; larger numbers are not told from infinity


def run(arguments: argparse.Namespace, console: Console) -> None:
    """Run the command.

    Args:
        arguments: the parsed command line.
        console: receives tables and messages; it must not read markup.

    Raises:
        UserError: if an argument or a setting is not legal, or the measurement fails.
    """
    if arguments.direction_samples < 2 or arguments.projection < 2:
        raise UserError("--direction-samples and --projection must be at least 2")
    config, default = read_words(arguments.words)
    folder = arguments.output_dir or default
    if folder.is_dir():
        check_replaceable(paths(folder)[0], "--output-dir", holds_json(WRITTEN))
    with _ProgressBars() as bars:
        options = Options(arguments.groups, arguments.direction_samples, arguments.projection)
        result = measure_signal(config, options, bars.advance)
    files = save_result(result, folder)
    if arguments.json:
        say(json.dumps(signal_json(result), indent=1, allow_nan=False))
        return
    for table in signal_tables(result):
        console.print(table, "")
    console.print("\n".join([*recommend(result).sentences, BRANCHING]), "")
    console.print(f"{result.seconds:.0f} s; written to {files[0]} and {files[1].name}")


def signal_tables(result: SignalResult) -> list[Table]:
    """The tables of a result: credits, reward plans, numbers of branches, and steps."""
    tables = [_credits(result)]
    plans = list(dict.fromkeys(m.alternative.plan for m in result.measured[1:] if m.alternative.plan != "final"))
    if len(plans) > 1:
        tables.append(_plans(result, plans))
    branches = sorted({m.alternative.branches for m in result.measured})
    if len(branches) > 1:
        tables.append(_branches(result, branches))
    return [*tables, _steps(result)]


def _credits(result: SignalResult) -> Table:
    own = result.measured[0].alternative
    table = Table(
        title=f"z of {result.options.groups} groups of {own.branches} towards the gradient of the reward",
        caption="samples: at which signal equals noise, along the last direction (95 % interval). SNR: ‖E g‖² / tr Cov "
        "of a group in percent; it counts signal in any direction, that of a biased credit too.",
    )
    columns = [*result.directions, "samples", "SNR, %", "samples, any direction"]
    _add_columns(table, "credit", columns)
    for name in (CONFIGURED, *CREDITS):
        if (measured := result.named(name)) is not None:
            main = measured.towards[result.main_direction]
            snr = measured.all_steps.snr
            table.add_row(
                name,
                *(_z(measured, direction) for direction in result.directions),
                _samples(groups_needed(main, 2), own.branches),
                f"{100 * snr.value:.2f} ± {100 * snr.error:.2f}",
                _samples(groups_needed(snr), own.branches),
            )
    return table


def _plans(result: SignalResult, plans: Sequence[str]) -> Table:
    direction, branches = result.main_direction, result.measured[0].alternative.branches
    table = Table(title=f"z towards {direction} by reward plan")
    _add_columns(table, "credit", plans)
    for credit in CREDITS:
        found = [_find(result, credit, plan, branches) for plan in plans]
        if any(found):
            table.add_row(credit, *("" if measured is None else _z(measured, direction) for measured in found))
    return table


def _branches(result: SignalResult, branches: Sequence[int]) -> Table:
    direction = result.main_direction
    table = Table(title=f"z towards {direction} of {_SHOWN} trajectories, by branches a group")
    _add_columns(table, "credit", [f"K = {number}" for number in branches])
    for credit in CREDITS:
        plan = "final" if credit == FINAL else "all"
        found = [_find(result, credit, plan, number) for number in branches]
        if any(found):
            scaled = [None if m is None else m.per_trajectory(direction) * _SHOWN**0.5 for m in found]
            table.add_row(credit, *("" if z is None else f"{z.value:.2f} ± {z.error:.2f}" for z in scaled))
    return table


def _find(result: SignalResult, credit: str, plan: str, branches: int) -> Measured | None:
    """The alternative with a credit, a plan and a number of branches, if it was measured."""
    wanted = (credit, plan, branches)
    each = ((m, m.alternative) for m in result.measured)
    return next((m for m, own in each if (own.credit, own.plan, own.branches) == wanted), None)


def _steps(result: SignalResult) -> Table:
    steps = range(len(result.measured[0].by_step))
    table = Table(title=f"z towards {result.main_direction} of each step's gradient")
    _add_columns(table, "credit", [f"step {step}" for step in steps])
    scale = result.options.groups**0.5
    for name in (CONFIGURED, *CREDITS):
        if (measured := result.named(name)) is not None:
            each = [ratio * scale for ratio in measured.towards_by_step[result.main_direction]]
            table.add_row(name, *(f"{z.value:.1f} ± {z.error:.1f}" if z.error else "–" for z in each))
    return table


def _add_columns(table: Table, first: str, columns: Sequence[str]) -> None:
    table.add_column(first)
    for column in columns:
        table.add_column(column, justify="right")


def _z(measured: Measured, direction: str) -> str:
    z = measured.z(direction)
    return f"{z.value:.1f} ± {z.error:.1f}"


def _samples(groups: tuple[float, float, float], branches: int) -> str:
    """A number of samples with its interval."""
    value, low, high = (_number(branches * number) for number in groups)
    return f"{value} ({low} … {high})"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value < _FAR else "∞"


class _ProgressBars:
    """A progress bar for each phase, on standard error; silent where it is not a terminal."""

    def __init__(self) -> None:
        self._tasks: dict[str, TaskID] = {}
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=not sys.stderr.isatty(),
        )

    def __enter__(self) -> _ProgressBars:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def advance(self, phase: str, done: int, whole: int) -> None:
        """Show that some work of a phase is done."""
        if phase not in self._tasks:
            self._tasks[phase] = self._progress.add_task(phase, total=whole)
        self._progress.update(self._tasks[phase], advance=done)
