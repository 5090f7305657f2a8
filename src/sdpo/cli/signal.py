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
    """The tables of a result: credits, batch sizes, reward plans, numbers of branches, and steps."""
    tables = [_credits(result), _sizes(result)]
    plans = list(dict.fromkeys(m.alternative.plan for m in result.measured[1:] if m.alternative.plan != "final"))
    if len(plans) > 1:
        tables.append(_plans(result, plans))
    branches = sorted({m.alternative.branches for m in result.measured})
    if len(branches) > 1:
        tables.append(_branches(result, branches))
    return [*tables, _steps(result)]


def _credits(result: SignalResult) -> Table:
    branches = result.measured[0].alternative.branches
    groups = f"{result.options.groups} groups of {branches}"
    table = Table(title=f"z of {groups} towards the gradient of the reward, by credit", title_justify="left")
    _add_columns(table, "credit", result.directions)
    for measured in _compared(result):
        table.add_row(measured.alternative.name, *(_z(measured, direction) for direction in result.directions))
    return table


def _sizes(result: SignalResult) -> Table:
    table = Table(
        title="samples at which an optimizer step has as much signal as noise, with 95 % intervals",
        caption="SNR = ‖E g‖² / tr Cov(g) of one group. In any direction, a credit's own bias counts as signal.",
        title_justify="left",
        caption_justify="left",
    )
    _add_columns(table, "credit", [f"towards {result.main_direction}", "in any direction", "SNR of a group, %"])
    for measured in _compared(result):
        branches, snr = measured.alternative.branches, measured.all_steps.snr
        table.add_row(
            measured.alternative.name,
            _samples(groups_needed(measured.towards[result.main_direction], 2), branches),
            _samples(groups_needed(snr), branches),
            f"{100 * snr.value:.2f} ± {100 * snr.error:.2f}",
        )
    return table


def _compared(result: SignalResult) -> list[Measured]:
    """The run's own setting and the credits at exact rewards and all branches, in the order of their list."""
    return [measured for name in (CONFIGURED, *CREDITS) if (measured := result.named(name)) is not None]


def _plans(result: SignalResult, plans: Sequence[str]) -> Table:
    direction, branches = result.main_direction, result.measured[0].alternative.branches
    table = Table(title=f"z towards {direction} by reward plan", title_justify="left")
    _add_columns(table, "credit", plans)
    for credit in CREDITS:
        found = [_find(result, credit, plan, branches) for plan in plans]
        if any(found):
            table.add_row(credit, *("" if measured is None else _z(measured, direction) for measured in found))
    return table


def _branches(result: SignalResult, branches: Sequence[int]) -> Table:
    direction = result.main_direction
    table = Table(title=f"z towards {direction} of {_SHOWN} trajectories, by branches a group", title_justify="left")
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
    table = Table(title=f"z towards {result.main_direction} of each step's gradient", title_justify="left")
    _add_columns(table, "credit", [f"step {step}" for step in steps])
    scale = result.options.groups**0.5
    for measured in _compared(result):
        each = [ratio * scale for ratio in measured.towards_by_step[result.main_direction]]
        table.add_row(measured.alternative.name, *(f"{z.value:.1f} ± {z.error:.1f}" if z.error else "–" for z in each))
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
