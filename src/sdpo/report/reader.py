"""Reads a run's directory. Missing and damaged parts are left out and noted, never guessed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sdpo.config.earlier import as_meant
from sdpo.config.load import read_mapping
from sdpo.errors import UserError, cause
from sdpo.evaluation.conditions import differences
from sdpo.evaluation.record import COSTS, Evaluation
from sdpo.run.directory import RunDirectory
from sdpo.run.metrics import read_rows

COST_LABELS = {
    "images": "samples",
    "reward_queries": "reward queries",
    "denoiser_evaluations": "network evaluations",
    "seconds": "time",
}
"""The words for each of `COSTS` in reports."""


@dataclass(frozen=True)
class Run:
    """Everything that reports use of a run.

    Attributes:
        directory: where the run's files are.
        config: the resolved configuration, its settings named as by this version.
        config_text: the text of the YAML file.
        environment: versions, device and number of processes.
        metrics: one row per epoch, by epoch.
        evaluations: one record per evaluation, by epoch; all were made under the same conditions.
        notes: one sentence for each part that was left out.
        stopped: `epoch`, `result_epoch` and `text` if a stopping rule ended the run, else empty.
        bare_base: the evaluation of the base model where that of epoch 0 is of other weights or conditions.
        left_out: the epochs whose evaluations were made under other conditions than the latest one.
    """

    directory: RunDirectory
    config: dict[str, Any]
    config_text: str
    environment: dict[str, Any]
    metrics: list[dict[str, Any]]
    evaluations: list[Evaluation]
    notes: list[str] = field(default_factory=list)
    stopped: dict[str, Any] = field(default_factory=dict)
    bare_base: Evaluation | None = None
    left_out: frozenset[int] = frozenset()

    @property
    def path(self) -> Path:
        """The run's directory."""
        return self.directory.path

    @property
    def name(self) -> str:
        """The directory's own name; reports never show the folders above it."""
        return self.directory.name

    @property
    def base(self) -> Evaluation | None:
        """The evaluation of the base model; None if there is none that can be compared with the others."""
        if self.bare_base is not None:
            return self.bare_base
        return self._before if self.start is None else None

    @property
    def start(self) -> Evaluation | None:
        """The evaluation before training of a run that starts from a LoRA; None for other runs."""
        before = self._before
        if before is None:
            return None
        if before.weights is not None:
            return before if before.weights.model == "start" else None
        lora = self.config.get("lora")  # a record of an earlier version does not say which weights it is of
        return before if isinstance(lora, dict) and lora.get("path") is not None else None

    @property
    def _before(self) -> Evaluation | None:
        return next((e for e in self.evaluations if e.epoch == 0), None)

    @property
    def tuned(self) -> Evaluation | None:
        """The evaluation of the run's result.

        It is the latest evaluation after training began, or the one at `result_epoch` if a stopping rule ended the run.
        """
        result = self.stopped.get("result_epoch")
        later = [e for e in self.evaluations if e.epoch > 0]
        return next((e for e in later if e.epoch == result), later[-1] if later else None)

    @property
    def sampler(self) -> str:
        """The sampler that drew the images of the evaluations, in words."""
        conditions = self.evaluations[-1].conditions if self.evaluations else None
        if conditions is not None:
            return conditions.text
        sample = self.config.get("sample")
        eta = sample.get("eta") if isinstance(sample, dict) else None
        return f"the training sampler (η = {eta:g})" if isinstance(eta, (int, float)) else "the training sampler"

    @property
    def judges(self) -> set[str]:
        """Names of the scores that are 1 where the image was recognised and 0 elsewhere."""
        return {e.judge for e in self.evaluations if e.judge}

    @property
    def last_epoch(self) -> int:
        """The last epoch that has metrics; 0 before the first."""
        return int(self.metrics[-1]["epoch"]) if self.metrics else 0


def read_run(path: Path) -> Run:
    """Read a run's directory.

    Args:
        path: the directory.

    Raises:
        UserError: if the directory or its configuration is missing, or the configuration is not a YAML mapping.
    """
    directory = RunDirectory(path)
    if not directory.is_run:
        reason = f"it has no {directory.config.name}" if path.is_dir() else "it is not a directory"
        raise UserError(f"{path} is not a run's directory: {reason}. Pass the --output-dir of an `sdpo train`.")
    metrics, damaged = read_rows(directory.metrics)
    notes = [f"{directory.metrics.name}, line {n}, is left out: not a JSON object with an epoch." for n in damaged]
    evaluations = _read_evaluations(directory, metrics, notes)
    kept, base = _comparable(evaluations, notes), _read_base(directory, notes)
    return Run(
        directory=directory,
        config=as_meant(read_mapping(directory.config)),
        config_text=directory.config.read_text(encoding="utf-8"),
        environment=_read_json(directory.environment, notes) or {},
        metrics=metrics,
        evaluations=kept,
        notes=notes,
        stopped=_read_json(directory.stopped, notes) or {},
        bare_base=base if base is not None and kept and not differences(base.conditions, kept[-1].conditions) else None,
        left_out=frozenset(e.epoch for e in evaluations) - {e.epoch for e in kept},
    )


def _read_evaluations(directory: RunDirectory, metrics: list[dict[str, Any]], notes: list[str]) -> list[Evaluation]:
    """Return the readable evaluations by epoch, and add a note for each of the others."""
    rows = {int(row["epoch"]): row for row in metrics}
    files = directory.evaluation_files()
    found = [evaluation for file in files if (evaluation := _read_evaluation(directory, file, notes)) is not None]
    return sorted((_with_costs(e, rows.get(e.epoch, {})) for e in found), key=lambda e: e.epoch)


def _read_base(directory: RunDirectory, notes: list[str]) -> Evaluation | None:
    base = _read_evaluation(directory, directory.base_evaluation, notes)
    return _with_costs(base, {}) if base is not None else None


def _read_evaluation(directory: RunDirectory, file: Path, notes: list[str]) -> Evaluation | None:
    """Return the evaluation in a file; None, with a note, if the file is damaged, and None if there is none."""
    record = _read_json(file, notes)
    if record is None:
        return None
    try:
        return Evaluation.from_json(record, file)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        notes.append(f"{file.relative_to(directory.path)} is left out: {type(error).__name__}: {cause(error)}.")
        return None


def _comparable(evaluations: list[Evaluation], notes: list[str]) -> list[Evaluation]:
    """Return the evaluations under the conditions of the latest one, and add a note on the others."""
    kept = [e for e in evaluations if not differences(e.conditions, evaluations[-1].conditions)]
    others = [e for e in evaluations if e not in kept]
    if others:
        reasons = dict.fromkeys(r for e in others for r in differences(e.conditions, evaluations[-1].conditions))
        listed = ", ".join(str(e.epoch) for e in others)
        notes.append(f"The evaluations of epoch {listed} are left out, as they differ in {'; '.join(reasons)}.")
    return kept


def _with_costs(evaluation: Evaluation, row: Mapping[str, Any]) -> Evaluation:
    """Add the costs that an older evaluation file lacks, from the metrics row of its epoch."""
    before_training = dict.fromkeys(COSTS, 0.0) if evaluation.epoch == 0 else {}
    from_metrics = {key: float(row[key]) for key in COSTS if isinstance(row.get(key), (int, float))}
    return replace(evaluation, costs={**before_training, **from_metrics, **evaluation.costs})


def _read_json(path: Path, notes: list[str]) -> dict[str, Any] | None:
    """Return the JSON object in a file, or None.

    Args:
        path: the file; it need not exist.
        notes: receives a sentence if the file exists and is damaged.
    """
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        notes.append(f"{path.name} is left out: it is not complete JSON (it may still be being written).")
        return None
    if not isinstance(record, dict):
        notes.append(f"{path.name} is left out: it does not hold a JSON object.")
        return None
    return record
