"""Groups of runs that are averaged: one group per name, one run per seed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdpo.commands.compare.allowed_differences import MAY_DIFFER_IN_A_GROUP
from sdpo.config.differences import differences
from sdpo.config.plain_yaml import dump_line
from sdpo.errors import UserError
from sdpo.evaluation.record import Evaluation
from sdpo.report.config_summary import setting_name
from sdpo.report.reader import Run, read_run
from sdpo.run.directory import RunDirectory


@dataclass(frozen=True)
class RunGroup:
    """Runs that differ in the seed alone, or that the user gave one label.

    Attributes:
        name: the name in figures and tables.
        runs: the runs by seed, [S].
    """

    name: str
    runs: list[Run]

    @property
    def config(self) -> Mapping[str, Any]:
        """The settings of the first run."""
        return self.runs[0].config

    @property
    def seeds(self) -> list[int]:
        """The runs' seeds, [S]."""
        return [seed_of(run) for run in self.runs]

    @property
    def results(self) -> list[Evaluation]:
        """The evaluations of the runs' results, of those runs that have one."""
        return [run.tuned for run in self.runs if run.tuned is not None]


def seed_of(run: Run) -> int:
    """Return a run's seed."""
    return int(run.config.get("seed", 0))


def make_group(name: str, runs: Sequence[Run]) -> RunGroup:
    """Return a group of runs.

    Args:
        name: the group's name.
        runs: the runs in any order.

    Raises:
        UserError: if two runs have one seed.
    """
    ordered = sorted(runs, key=seed_of)
    for one, other in zip(ordered, ordered[1:], strict=False):
        if seed_of(one) == seed_of(other):
            raise UserError(
                f"{one.path} and {other.path} are both {name} with seed {seed_of(one)}: leave one of them out, or "
                f"separate them by labels, for example first={one.path} second={other.path}"
            )
    return RunGroup(name, ordered)


def split_label(word: str) -> tuple[str | None, Path]:
    """Return the label, if there is one, and the path of a word `LABEL=DIR` or `DIR`."""
    label, equals, path = word.partition("=")
    return (label, Path(path)) if equals and label and not Path(word).is_dir() else (None, Path(word))


def is_run(word: str) -> bool:
    """Whether a word `LABEL=DIR` or `DIR` names a run's directory."""
    return RunDirectory(split_label(word)[1]).is_run


def group_directories(words: Sequence[str]) -> list[RunGroup]:
    """Group run directories by their labels, and those without a label by their settings without the seed.

    Args:
        words: directories of runs, each `DIR` or `LABEL=DIR`.

    Raises:
        UserError: if a directory is not a run's, two runs of a group have one seed, or two groups have one name.
    """
    found: list[tuple[str | None, list[Run]]] = []
    for word in words:
        label, path = split_label(word)
        run = read_run(path)
        for other, runs in found:
            if label == other and (label is not None or _same_settings(runs[0], run)):
                runs.append(run)
                break
        else:
            found.append((label, [run]))
    automatic = iter(_names([runs[0].config for label, runs in found if label is None]))
    groups = [make_group(next(automatic) if label is None else label, runs) for label, runs in found]
    for name, count in Counter(group.name for group in groups).items():
        if count > 1:
            raise UserError(f"{count} groups of different runs are named {name}: give them labels, LABEL=DIR")
    return groups


def _same_settings(one: Run, other: Run) -> bool:
    return not differences(one.config, other.config, MAY_DIFFER_IN_A_GROUP)


def _names(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return each configuration's algorithm; if several share it, with the settings that tell them apart."""
    names = []
    for config in configs:
        algorithm = setting_name(config.get("algorithm"), "name")
        rivals = [c for c in configs if setting_name(c.get("algorithm"), "name") == algorithm and c is not config]
        own = {
            key: value
            for rival in rivals
            for key, (value, _) in differences(config, rival, MAY_DIFFER_IN_A_GROUP).items()
        }
        listed = ", ".join(f"{key.rpartition('.')[2]}={_short(value)}" for key, value in sorted(own.items()))
        names.append(f"{algorithm} ({listed})" if rivals else algorithm)
    return names


def _short(value: Any) -> str:
    text = dump_line(value)
    return text if len(text) <= 24 else f"{text[:23]}…"
