"""The runs that are averaged together: one group a name, one run a seed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdpo.commands.compare.settings import OF_THE_RUN
from sdpo.config.differences import differences
from sdpo.config.plain_yaml import dump_line
from sdpo.errors import UserError
from sdpo.report.document import setting_name
from sdpo.report.reader import Evaluation, Run, read_run


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seed alone, or that the user gave one label.

    Attributes:
        name: what the figures call it.
        runs: by seed.
    """

    name: str
    runs: list[Run]

    @property
    def config(self) -> Mapping[str, Any]:
        """The settings of its first run."""
        return self.runs[0].config

    @property
    def seeds(self) -> list[int]:
        """The runs' seeds, [S]."""
        return [seed_of(run) for run in self.runs]

    @property
    def results(self) -> list[Evaluation]:
        """The evaluations of its runs' results, where there are any yet."""
        return [run.tuned for run in self.runs if run.tuned is not None]


def seed_of(run: Run) -> int:
    """A run's seed."""
    return int(run.config.get("seed", 0))


def make_group(name: str, runs: Sequence[Run]) -> Group:
    """A group of runs with different seeds.

    Raises:
        UserError: if two have the same.
    """
    ordered = sorted(runs, key=seed_of)
    for one, other in zip(ordered, ordered[1:], strict=False):
        if seed_of(one) == seed_of(other):
            raise UserError(
                f"{one.path} and {other.path} are both {name} with seed {seed_of(one)}: leave one out, or "
                f"tell them apart by labels, such as first={one.path} second={other.path}"
            )
    return Group(name, ordered)


def split_label(word: str) -> tuple[str | None, Path]:
    """`LABEL=DIR` or `DIR`."""
    label, equals, path = word.partition("=")
    return (label, Path(path)) if equals and label and not Path(word).is_dir() else (None, Path(word))


def is_run(word: str) -> bool:
    """Whether a word is a run's directory, with or without a label."""
    return (split_label(word)[1] / "config.yaml").is_file()


def group_directories(words: Sequence[str]) -> list[Group]:
    """Group run directories by their labels, the others by what differs in their settings besides the seed.

    Raises:
        UserError: if one is not a run's directory, or names do not tell the groups apart.
    """
    found: list[tuple[str | None, list[Run]]] = []
    for word in words:
        label, path = split_label(word)
        run = read_run(path)
        for other, runs in found:
            if label == other and (label is not None or not differences(runs[0].config, run.config, OF_THE_RUN)):
                runs.append(run)
                break
        else:
            found.append((label, [run]))
    automatic = iter(_names([runs[0].config for label, runs in found if label is None]))
    groups = [make_group(next(automatic) if label is None else label, runs) for label, runs in found]
    for name, count in Counter(group.name for group in groups).items():
        if count > 1:
            raise UserError(f"{count} different runs would all be called {name}: give them labels, LABEL=DIR")
    return groups


def _names(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """The algorithm's name; where several share it, with the settings that tell them apart."""
    names = []
    for config in configs:
        algorithm = setting_name(config.get("algorithm"), "name")
        rivals = [c for c in configs if setting_name(c.get("algorithm"), "name") == algorithm and c is not config]
        told = {key: own for rival in rivals for key, (own, _) in differences(config, rival, OF_THE_RUN).items()}
        apart = ", ".join(f"{key.rpartition('.')[2]}={_short(value)}" for key, value in sorted(told.items()))
        names.append(f"{algorithm} ({apart})" if rivals else algorithm)
    return names


def _short(value: Any) -> str:
    text = dump_line(value)
    return text if len(text) <= 24 else f"{text[:23]}…"
