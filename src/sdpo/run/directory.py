"""The layout of a run's directory: every file name stands here once."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sdpo.errors import UserError

DEFAULT = "runs/latest"
"""The directory of a run in Python whose configuration names none."""

_EPOCH = "epoch_"
_EVALUATION = re.compile(rf"{_EPOCH}(?P<epoch>\d{{4,}})(?P<end>|\.json|\.json\.tmp)", re.ASCII)
_STEPS = "steps_"


@dataclass(frozen=True)
class RunDirectory:
    """The paths of a run's files; nothing is created or read.

    Attributes:
        path: the directory itself, which `--output-dir` names.
    """

    path: Path

    @property
    def name(self) -> str:
        """The directory's own name, without the folders above it."""
        return self.path.resolve().name

    @property
    def config(self) -> Path:
        """The resolved configuration; a directory that has one is a run."""
        return self.path / "config.yaml"

    @property
    def is_run(self) -> bool:
        """Whether a run has written its configuration here."""
        return self.config.is_file()

    @property
    def environment(self) -> Path:
        """The versions, the device and the number of processes of a run, and the format of its directory."""
        return self.path / "environment.json"

    @property
    def metrics(self) -> Path:
        """The metrics, one JSON object an epoch."""
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints, one folder an epoch."""
        return self.path / "checkpoints"

    @property
    def stopped(self) -> Path:
        """The record of a run that a stopping rule ended."""
        return self.path / "stopped.json"

    @property
    def lock(self) -> Path:
        """The file that a running process locks."""
        return self.path / ".lock"

    @property
    def trackers(self) -> Path:
        """The names under which trackers know this run, so that a resumed run continues there."""
        return self.path / "trackers.json"

    @property
    def lora(self) -> Path:
        """The result of a run that trains a LoRA."""
        return self.path / "lora"

    @property
    def model(self) -> Path:
        """The result of a run that trains all weights."""
        return self.path / "model"

    @property
    def staging(self) -> Path:
        """The folder in which a result is written before it replaces the last one."""
        return self.path / "result.tmp"

    @property
    def report(self) -> Path:
        """The self-contained HTML page."""
        return self.path / "report.html"

    @property
    def curves(self) -> Path:
        """The learning curves as a picture."""
        return self.path / "curves.png"

    @property
    def samples(self) -> Path:
        """Images of the base and the tuned model, side by side."""
        return self.path / "samples.png"

    def evaluate_output(self, sampler: str | None = None, sweep: bool = False) -> Path:
        """The file that `sdpo evaluate` writes by default.

        Args:
            sampler: the name of a sampler other than the one that the run's evaluations use; None is that one.
            sweep: whether the file is that of several strengths of the LoRA.
        """
        parts = ["evaluation", *(["strength"] if sweep else []), *([sampler] if sampler is not None else [])]
        return self.path / f"{'-'.join(parts)}.json"

    @property
    def evaluations(self) -> Path:
        """The folder of the evaluations that training made."""
        return self.path / "evaluation"

    def evaluation(self, epoch: int) -> Path:
        """The scores of an epoch's evaluation."""
        return self.evaluations / f"{_EPOCH}{epoch:04d}.json"

    @property
    def base_evaluation(self) -> Path:
        """The scores of the base model, where those before training are of other weights or cannot be compared."""
        return self.evaluations / "base.json"

    def evaluation_files(self) -> Iterator[Path]:
        """The scores of all evaluations, by epoch; other files beside them are not the run's."""
        files = (file for file in self.evaluations.glob(f"{_EPOCH}*.json") if _EVALUATION.fullmatch(file.name))
        # By length first: the number of an epoch has four digits or more.
        yield from sorted(files, key=lambda file: (len(file.name), file.name))

    def evaluations_after(self, epoch: int) -> Iterator[Path]:
        """Files and folders of evaluations of epochs after `epoch`, and half-written files; none that is the user's."""
        for path in self.evaluations.glob(f"{_EPOCH}*"):
            name = _EVALUATION.fullmatch(path.name)
            if name is not None and (name["end"] == ".json.tmp" or int(name["epoch"]) > epoch):
                yield path

    def export(self, form: str) -> Path:
        """The default folder of an export."""
        return self.path / "export" / form


def strip(evaluation: Path, steps: int) -> Path:
    """The picture with an evaluation's first images at a number of steps, beside the file with its scores."""
    return evaluation.with_suffix("") / f"{_STEPS}{steps}.png"


def strips(evaluation: Path) -> dict[int, Path]:
    """All pictures of an evaluation by number of steps, ascending."""
    found = {file.stem.removeprefix(_STEPS): file for file in evaluation.with_suffix("").glob(f"{_STEPS}*.png")}
    return {steps: found[str(steps)] for steps in sorted(int(name) for name in found if name.isdecimal())}


def create(path: str | Path, main: bool = True) -> RunDirectory:
    """Create a run's directory.

    Args:
        path: the directory, which may exist.
        main: whether this process creates the directory; the other processes only check its name.

    Raises:
        UserError: if the path is a file, or the directory cannot be created.
    """
    if os.path.isfile(path):
        raise UserError(f"--output-dir {path} is a file: name a new or existing directory")
    try:
        if main:
            Path(path).mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:  # ValueError: a name with a null character
        raise UserError(f"--output-dir {path} cannot be created: {error}. Name another directory.") from error
    return RunDirectory(Path(path))
