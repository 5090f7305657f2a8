"""The tables that commands print."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.table import Table

from sdpo.system.units import gigabytes

if TYPE_CHECKING:
    from sdpo.commands.bench import BenchResult


def evaluation_table(result: Mapping[str, Any]) -> Table:
    """Tabulate the mean rewards at each number of steps: the base model's, and the tuned model's if there is one.

    Args:
        result: the result of `evaluate_target`.
    """
    tuned = "after" in result
    table = Table(
        title=f"{len(result['prompts'])} images a step count, by {result['sampler']}",
        caption="±: the standard error of the paired gain over images" if tuned else None,
    )
    for column in ["reward", "steps", "base", *(["tuned", "paired gain"] if tuned else [])]:
        table.add_column(column, justify="left" if column == "reward" else "right")
    for name, by_steps in result["summary"].items():
        for steps, row in by_steps.items():
            cells = [name, steps, f"{row['base']:.4f}"]
            if tuned:
                error = row["standard_error"]
                cells += [
                    f"{row['tuned']:.4f}",
                    f"{row['gain']:+.4f}" + (f" ± {error:.4f}" if error is not None else ""),
                ]
            table.add_row(*cells)
    return table


def strength_table(result: Mapping[str, Any]) -> Table:
    """Tabulate the mean rewards and the monitors at each strength of a LoRA.

    Args:
        result: the result of `evaluate_strengths`.
    """
    steps = list(next(iter(next(iter(result["summary"].values())).values())))
    table = Table(title=f"{len(result['prompts'])} images a step count, by {result['sampler']}")
    for column in ("measure", "strength", *(f"{n} step{'s' * (n != '1')}" for n in steps)):
        table.add_column(column, justify="left" if column == "measure" else "right")
    for name in next(iter(result["summary"].values())):
        for strength, measured in result["summary"].items():
            table.add_row(name, strength, *(_decimal(measured[name].get(n)) for n in steps))
    return table


def _decimal(value: float | None) -> str:
    """Return four decimals, or a power of ten where four would show 0 or nearly so, as of a small divergence."""
    if value is None:
        return ""
    return f"{value:.4f}" if value == 0 or abs(value) >= 1e-3 else f"{value:.1e}"


def score_table(rows: Sequence[Mapping[str, Any]], rewards: Sequence[str]) -> Table:
    """Tabulate the scores of image files.

    Args:
        rows: the result of `score_files`.
        rewards: the names of the rewards.
    """
    table = Table()
    for column in ("image", "prompt", *rewards):
        table.add_column(column, justify="left" if column in ("image", "prompt") else "right", overflow="fold")
    for row in rows:
        table.add_row(row["image"], row["prompt"], *(f"{row[name]:.4f}" for name in rewards))
    return table


def bench_tables(measured: BenchResult) -> Group:
    """Tabulate the time of an epoch, and the time of the bare network for the same evaluations."""
    ratio = f"epoch / limit: {measured.ratio:.3f} (median; each: {', '.join(f'{r:.3f}' for r in measured.ratios)})"
    if not measured.bare:
        ratio = "epoch / limit: not measured; the bare work of reward gradients is not defined"
    line = (
        f"{ratio}\n"
        f"{measured.samples_per_second:.1f} trajectories a second; peak memory {gigabytes(measured.peak_bytes)}; "
        f"encoding all prompts, once a run: {measured.encode:.3f} s"
    )
    return Group(_epoch_table(measured), *([_limit_table(measured)] if measured.bare else []), line)


def _epoch_table(measured: BenchResult) -> Table:
    table = Table(title=f"an epoch on {measured.device}, medians of {measured.repetitions}")
    for column in ("phase", "seconds", "share"):
        table.add_column(column, justify="left" if column == "phase" else "right")
    for name, seconds in measured.phases.items():
        table.add_row(name, f"{seconds:.3f}", f"{seconds / measured.epoch:.1%}")
    table.add_row("epoch", f"{measured.epoch:.3f}", "", style="bold")
    return table


def _limit_table(measured: BenchResult) -> Table:
    count, bare, batch = measured.evaluations, measured.bare, measured.batch
    table = Table(title="the bare network, for the same evaluations")
    for column in ("", "number", "batch", "ms each", "seconds"):
        table.add_column(column, justify="left" if not column else "right")
    for name, kind, label in (("forward", "sample", "forward"), ("backward", "update", "forward + backward")):
        for where, size, condition in (("same", batch[kind], "as in the run"), ("best", batch[name], "at its best")):
            each = bare[f"{name}_{where}"]
            cells = (str(count[name]), str(size), f"{1e3 * each:.2f}", f"{each * count[name]:.3f}")
            table.add_row(f"{label}, {condition}", *cells)
    for name in ("decode", "reward"):
        table.add_row(name, "", "", "", f"{bare[name]:.3f}")
    table.add_row("limit (at its best)", "", "", "", f"{measured.limit:.3f}", style="bold")
    return table
