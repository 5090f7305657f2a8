"""Compares algorithms and settings over seeds: trains the missing runs, and writes figures, tables and a page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sdpo.commands.compare.comparison import Comparison
from sdpo.commands.compare.groups import RunGroup, group_directories, make_group
from sdpo.commands.compare.output import ComparisonResult, check_folder, write_comparison
from sdpo.commands.compare.plan import PlannedRun, plan_runs
from sdpo.commands.compare.training import Say, train_missing
from sdpo.errors import UserError
from sdpo.report.reader import read_run

__all__ = [
    "Comparison",
    "ComparisonResult",
    "PlannedRun",
    "RunGroup",
    "compare",
    "compare_directories",
    "plan_runs",
    "write_comparison",
]


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
) -> ComparisonResult:
    """Train the missing runs of a comparison and compare all of them.

    Args:
        source: name of a preset or path of a YAML file; None is the preset `emoji`.
        overrides: strings `section.key=value`, applied to all runs.
        algorithms: names of algorithms or variants.
        output_dir: folder of the comparison; its runs are in `output_dir/runs`.
        seeds: number of seeds.
        first_seed: the first seed; the others follow it.
        variants: path of a YAML file of named variants, name → overrides.
        processes: number of runs that train at the same time.
        reach: the name whose final reward is the target of the table of samples to reach it; None is `ddpo` if that is
            among `algorithms`.
        say: receives one line of text at the beginning and at the end of each run.

    Raises:
        UserError: if `plan_runs` rejects the arguments, a directory holds a run with other settings (nothing is trained
            then), or a run failed (the others are trained and compared).
    """
    if reach is not None and reach not in algorithms:
        raise UserError(f"--reach {reach}: not one of the compared names ({', '.join(algorithms)})")
    file = None if variants is None else Path(variants)
    check_folder(Path(output_dir))
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
    target = reach if reach in [group.name for group in groups] else None
    result = write_comparison(groups, output_dir, reach=target)
    if failed:
        raise UserError(f"{len(failed)} of {len(planned)} runs failed; {result.page} compares the others\n{messages}")
    return result


def compare_directories(
    directories: Sequence[str | Path], output_dir: str | Path, *, reach: str | None = None
) -> ComparisonResult:
    """Compare existing runs.

    Args:
        directories: directories of runs, each `DIR` or `LABEL=DIR`. Runs are averaged if they have one label, or no
            label and settings that differ in the seed alone.
        output_dir: folder of the comparison.
        reach: the name whose final reward is the target of the table of samples to reach it; None is `ddpo` if a group
            has that name.

    Raises:
        UserError: if a directory is not a run's, a run was not evaluated, or the runs have nothing in common.
    """
    return write_comparison(group_directories([str(d) for d in directories]), output_dir, reach=reach)
