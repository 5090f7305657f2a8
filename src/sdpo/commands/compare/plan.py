"""The runs that a comparison needs: every name with every seed, and which of them are finished."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sdpo.commands.compare.allowed_differences import MAY_DIFFER_IN_A_GROUP, MAY_DIFFER_WHEN_RESUMED
from sdpo.commands.compare.variants import load_variants, name_overrides
from sdpo.config.differences import differences
from sdpo.config.plain_yaml import dump_line
from sdpo.config.schema import Config
from sdpo.errors import UserError
from sdpo.report.reader import Run, read_run
from sdpo.run.checkpoint import CheckpointStore
from sdpo.run.directory import RunDirectory

# Settings of single runs that a comparison sets → the option that sets them.
_OPTIONS = {
    "seed": "--first-seed",
    "output_dir": "--output-dir",
    "algorithm": "--algorithms",
    "algorithm.name": "--algorithms",
}


@dataclass(frozen=True)
class PlannedRun:
    """One run of a comparison.

    Attributes:
        name: the algorithm or variant.
        config: the configuration, with the run's seed and directory.
    """

    name: str
    config: Config

    @property
    def path(self) -> Path:
        """The run's directory."""
        return Path(str(self.config.output_dir))

    def epochs_done(self) -> int:
        """Return the number of trained epochs.

        Raises:
            UserError: if the directory holds a run with other settings.
        """
        return read_run(self.path).last_epoch if self.begun() else 0

    def begun(self) -> bool:
        """Return whether an epoch has been trained.

        Raises:
            UserError: if the directory holds a run with other settings.
        """
        directory = RunDirectory(self.path)
        if not directory.is_run:
            return False
        run, has_checkpoints = read_run(self.path), bool(CheckpointStore(directory.checkpoints).epochs())
        if not run.metrics and not has_checkpoints:
            return False
        self._check_settings(run, has_checkpoints)
        return True

    def _check_settings(self, run: Run, has_checkpoints: bool) -> None:
        """Reject a run that these settings neither made nor can resume.

        Raises:
            UserError: if a setting differs.
        """
        found = differences(run.config, self.config.model_dump(mode="json"), MAY_DIFFER_WHEN_RESUMED)
        can_be_extended = has_checkpoints and self.config.train.lr_schedule == "constant"
        if "epochs" in found and can_be_extended and run.last_epoch <= self.config.epochs:
            del found["epochs"]
        if found:
            listed = "\n".join(f"  {key}: {dump_line(old)} → {dump_line(new)}" for key, (old, new) in found.items())
            raise UserError(
                f"{self.path} holds a run made with other settings:\n{listed}\n"
                "Choose another --output-dir, or delete that run to train it again."
            )

    def finished(self) -> bool:
        """Return whether the last epoch was trained and evaluated and the result was written.

        The last epoch is the one at which a stopping rule ended the run, if one did.

        Raises:
            UserError: if the directory holds a run with other settings.
        """
        if not self.begun():
            return False
        run, directory = read_run(self.path), RunDirectory(self.path)
        last = run.stopped.get("epoch", self.config.epochs)
        if run.last_epoch != last or run.tuned is None or run.tuned.epoch != run.stopped.get("result_epoch", last):
            return False
        if not directory.checkpoints.is_dir():
            return True  # only the numbers of a finished run were kept
        # The report is written last. One that is older than the last checkpoint is of an earlier, shorter training.
        newest = directory.checkpoints / str(last)
        if not newest.is_dir() or not directory.report.is_file():
            return False
        return directory.report.stat().st_mtime_ns >= newest.stat().st_mtime_ns


def plan_runs(
    source: str | None,
    overrides: Sequence[str],
    algorithms: Sequence[str],
    seeds: int,
    first_seed: int,
    output_dir: Path,
    variants_file: Path | None = None,
) -> list[PlannedRun]:
    """Return the runs of a comparison, seed by seed.

    Args:
        source: name of a preset or path of a YAML file; None is the preset `emoji`.
        overrides: strings `section.key=value`, applied to all runs; they replace a variant's settings.
        algorithms: names of algorithms or variants.
        seeds: number of seeds.
        first_seed: the first seed; the others follow it.
        output_dir: folder of the comparison.
        variants_file: the user's own variants; they replace the preset's of the same name.

    Raises:
        UserError: if a name is unknown or given twice, a setting is not valid, or two names have equal settings.
    """
    for override in overrides:
        key = override.partition("=")[0]
        if key in _OPTIONS:
            raise UserError(f"{override}: in a comparison, set {key} by {_OPTIONS[key]}")
    if seeds < 1 or not algorithms:
        raise UserError("a comparison needs at least one name in --algorithms and one seed in --seeds")
    variants = load_variants(source, variants_file)
    planned = []
    for seed in range(first_seed, first_seed + seeds):
        for name in algorithms:
            settings = [*name_overrides(name, variants), *overrides]
            if name not in variants:
                settings = [*_equal_samples(source, settings, overrides), *settings]
            path = output_dir / "runs" / f"{name.replace(':', '.')}-seed{seed}"
            try:
                config = Config.load(source, settings, seed=seed, output_dir=str(path))
            except UserError as error:
                raise UserError(f"{name}: {error}") from error
            planned.append(PlannedRun(name, config))
    _reject_duplicates(planned[: len(algorithms)])
    return planned


def _equal_samples(source: str | None, settings: Sequence[str], overrides: Sequence[str]) -> list[str]:
    """Return overrides by which an algorithm with another number of branches draws as many samples as the preset's.

    Epochs and optimizer steps then take as many trajectories as the preset's algorithm has them take. Nothing is
    changed where these do not divide, or where the algorithm cannot be built; the comparison's notes then say so.
    """
    try:
        base, own = Config.load(source, list(overrides)), Config.load(source, list(settings))
    except UserError:
        return []  # reported where the run itself is planned
    samples, branches = base.build_algorithm().branches, own.build_algorithm().branches
    groups = [base.sample.prompts_per_epoch * samples, base.train.batch_size * samples]
    if samples == branches or any(count % branches for count in groups):
        return []
    return [f"sample.prompts_per_epoch={groups[0] // branches}", f"train.batch_size={groups[1] // branches}"]


def _reject_duplicates(planned: Sequence[PlannedRun]) -> None:
    """Reject two names that train the same, which the overrides may have caused.

    Raises:
        UserError: if a name is given twice, or two names have equal settings.
    """
    for i, one in enumerate(planned):
        for other in planned[:i]:
            if one.name == other.name:
                raise UserError(f"--algorithms names {one.name} twice")
            first, second = (run.config.model_dump(mode="json") for run in (one, other))
            if not differences(first, second, MAY_DIFFER_IN_A_GROUP):
                raise UserError(f"{other.name} and {one.name} have the same settings: leave one of them out")
