"""Which runs a comparison needs: every name with every seed, and which of them are finished."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdpo.commands.compare.settings import OF_THE_MACHINE, OF_THE_RUN
from sdpo.config.differences import differences
from sdpo.config.load import DEFAULT_PRESET, PRESETS, WHOLE, preset_names, read_mapping
from sdpo.config.plain_yaml import dump_line
from sdpo.config.schema import Config
from sdpo.errors import UserError, nearest
from sdpo.method.algorithms import ALGORITHMS
from sdpo.report.reader import read_run
from sdpo.run.checkpoint import CheckpointStore

VARIANTS = PRESETS / "variants"

_BY_OPTION = {
    "seed": "--first-seed",
    "output_dir": "--output-dir",
    "algorithm": "--algorithms",
    "algorithm.name": "--algorithms",
}


@dataclass(frozen=True)
class Planned:
    """One run of a comparison.

    Attributes:
        name: the algorithm or variant.
        config: with its seed and directory.
    """

    name: str
    config: Config

    @property
    def path(self) -> Path:
        """The run's directory."""
        return Path(str(self.config.output_dir))

    def begun(self) -> bool:
        """Whether an epoch of it has been trained.

        Raises:
            UserError: if what is in its directory was made with other settings.
        """
        if not (self.path / "config.yaml").is_file():
            return False
        run, checkpoints = read_run(self.path), CheckpointStore(self.path / "checkpoints").epochs()
        if not run.metrics and not checkpoints:
            return False
        found = differences(run.config, self.config.model_dump(mode="json"), OF_THE_MACHINE)
        more = bool(checkpoints) and run.last_epoch <= self.config.epochs
        if "epochs" in found and more and self.config.train.lr_schedule == "constant":
            del found["epochs"]  # it simply goes on
        if found:
            listed = "\n".join(f"  {key}: {dump_line(old)} → {dump_line(new)}" for key, (old, new) in found.items())
            raise UserError(
                f"{self.path} holds a run made with other settings:\n{listed}\n"
                "Name another --output-dir, or delete that run to train it anew."
            )
        return True

    def finished(self) -> bool:
        """Whether its last epoch, or the one at which a rule stopped it, has been trained and its result written."""
        if not self.begun():
            return False
        run = read_run(self.path)
        last = run.stopped.get("epoch", self.config.epochs)
        if run.last_epoch != last or run.tuned is None or run.tuned.epoch != run.stopped.get("result_epoch", last):
            return False
        checkpoints, report = self.path / "checkpoints", self.path / "report.html"
        if not checkpoints.is_dir():
            return True  # kept for its numbers
        # The report is written last of all, but an earlier one may lie there.
        newest = checkpoints / str(last)
        return newest.is_dir() and report.is_file() and report.stat().st_mtime_ns >= newest.stat().st_mtime_ns


def plan_runs(
    source: str | None,
    overrides: Sequence[str],
    algorithms: Sequence[str],
    seeds: int,
    first_seed: int,
    output_dir: Path,
    variants_file: Path | None = None,
) -> list[Planned]:
    """The runs of a comparison, seed by seed.

    Args:
        source: a preset's name or a YAML file; None is the preset `emoji`.
        overrides: `section.key=value` for all runs; they win over a variant's settings.
        algorithms: names of algorithms or variants.
        seeds: how many.
        first_seed: the others follow it.
        output_dir: the comparison's directory.
        variants_file: the user's own variants; they win over the preset's of the same name.

    Raises:
        UserError: if a name is unknown or twice there, a setting is not legal, or two names mean the same settings.
    """
    for override in overrides:
        key = override.partition("=")[0]
        if key in _BY_OPTION:
            raise UserError(f"{override}: a comparison sets {key} by {_BY_OPTION[key]}")
    if seeds < 1 or not algorithms:
        raise UserError("a comparison needs at least one name in --algorithms and one seed in --seeds")
    variants = load_variants(source, variants_file)
    planned = []
    for seed in range(first_seed, first_seed + seeds):
        for name in algorithms:
            settings = _overrides(name, variants)
            path = output_dir / "runs" / f"{name.replace(':', '.')}-seed{seed}"
            try:
                config = Config.load(source, [*settings, *overrides], seed=seed, output_dir=str(path))
            except UserError as error:
                raise UserError(f"{name}: {error}") from error
            planned.append(Planned(name, config))
    _refuse_twins(planned[: len(algorithms)])
    return planned


def load_variants(source: str | None, file: Path | None) -> dict[str, Mapping[str, Any]]:
    """The named variants of a preset, and the user's own: name → overrides.

    Raises:
        UserError: if a file cannot be read, a name cannot name a directory, or what it names is not a mapping.
    """
    preset = DEFAULT_PRESET if source is None else source
    files = [VARIANTS / f"{preset}.yaml"] if preset in preset_names() else []
    variants: dict[str, Mapping[str, Any]] = {}
    for path in [*(f for f in files if f.is_file()), *([file] if file else [])]:
        for name, settings in read_mapping(path).items():
            if not re.fullmatch(r"\w[\w.+-]*", str(name)):
                raise UserError(f"{path}: {name!r} cannot name a variant: use letters, digits and the signs _ . + -")
            if not isinstance(settings, Mapping):
                raise UserError(f"{path}: {name} should be overrides such as {{train: {{learning_rate: 1.0e-4}}}}")
            variants[str(name)] = settings
    return variants


def _overrides(name: str, variants: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A name as overrides for `Config.load`."""
    if name not in variants and name not in ALGORITHMS and ":" not in name:
        known = [*ALGORITHMS, *(v for v in variants if v not in ALGORITHMS)]
        hint = nearest(name, known) if nearest(name, known).startswith(" (did") else ""
        raise UserError(
            f"--algorithms: there is no algorithm or variant {name!r}{hint}. There are: {', '.join(known)}; "
            "--variants FILE adds your own."
        )
    flat: dict[str, Any] = {"algorithm.name": name} if name in ALGORITHMS or ":" in name else {}
    for key, value in variants.get(name, {}).items():
        nested = isinstance(value, Mapping) and key not in WHOLE
        flat |= {f"{key}.{inner}": v for inner, v in value.items()} if nested else {key: value}
    return [f"{key}={dump_line(value)}" for key, value in flat.items()]


def _refuse_twins(planned: Sequence[Planned]) -> None:
    """Two names that train the same, which one of the overrides may have brought about."""
    for i, one in enumerate(planned):
        for other in planned[:i]:
            if one.name == other.name:
                raise UserError(f"--algorithms names {one.name} twice")
            if not differences(one.config.model_dump(mode="json"), other.config.model_dump(mode="json"), OF_THE_RUN):
                raise UserError(f"{other.name} and {one.name} come out with the same settings: leave one of them out")
