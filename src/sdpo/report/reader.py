"""Reads a run's directory. What is missing or half-written is left out and noted, never guessed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdpo.config.load import read_mapping
from sdpo.errors import UserError
from sdpo.run.metrics import read_rows

FloatArray = NDArray[np.float64]

COSTS = {
    "images": "samples",
    "reward_queries": "reward queries",
    "denoiser_evaluations": "network evaluations",
    "seconds": "time",
}
"""What a run spends: the key in the run's files → the words in the report."""


@dataclass(frozen=True)
class Split:
    """The scores of one set of prompts, one value an image."""

    prompts: list[str]
    seeds: list[int]
    scores: dict[str, dict[int, FloatArray]]  # reward or judge → step count → [N]


@dataclass(frozen=True)
class Evaluation:
    """One evaluation: the images of fixed prompts and seeds at several step counts."""

    epoch: int
    costs: dict[str, float]
    seen: Split
    unseen: Split | None
    judge: str | None
    strips: dict[int, Path]  # step count → a horizontal strip of square tiles
    monitors: dict[str, dict[int, float]] = field(default_factory=dict)  # monitor → step count → value


@dataclass(frozen=True)
class Run:
    """All that the report knows about a run."""

    path: Path
    config: dict[str, Any]
    config_text: str
    environment: dict[str, Any]
    metrics: list[dict[str, Any]]  # by epoch
    evaluations: list[Evaluation]  # by epoch
    notes: list[str] = field(default_factory=list)
    stopped: dict[str, Any] = field(default_factory=dict)  # where a rule ended it: epoch, result_epoch, text

    @property
    def name(self) -> str:
        """The directory's own name: the report never shows where on a machine it lies."""
        return self.path.resolve().name

    @property
    def base(self) -> Evaluation | None:
        """The evaluation before any training."""
        return next((e for e in self.evaluations if e.epoch == 0), None)

    @property
    def tuned(self) -> Evaluation | None:
        """The evaluation of the result: the latest after training, unless a rule ended the run."""
        result = self.stopped.get("result_epoch")
        later = [e for e in self.evaluations if e.epoch > 0]
        return next((e for e in later if e.epoch == result), later[-1] if later else None)

    @property
    def judges(self) -> set[str]:
        """Scores that are 1 where the right thing was recognised and else 0."""
        return {e.judge for e in self.evaluations if e.judge}

    @property
    def last_epoch(self) -> int:
        """The last epoch that has metrics, 0 before the first."""
        return int(self.metrics[-1]["epoch"]) if self.metrics else 0


def read_run(path: Path) -> Run:
    """Read a run's directory.

    Raises:
        UserError: if the directory or its `config.yaml` is missing, or `config.yaml` does not hold a mapping.
    """
    config_path = path / "config.yaml"
    if not config_path.is_file():
        what = "has no config.yaml" if path.is_dir() else "is not a directory"
        raise UserError(f"{path} is not a run's directory: it {what}. Give the --output-dir of an `sdpo train`.")
    config = read_mapping(config_path)
    metrics, damaged = read_rows(path / "metrics.jsonl")
    notes = [f"metrics.jsonl, line {n}, is left out: it is not a JSON object with an epoch." for n in damaged]
    by_epoch = {int(row["epoch"]): row for row in metrics}
    evaluations = []
    for file in sorted((path / "evaluation").glob("epoch_*.json")):
        record = _read_json(file, notes)
        if record is None:
            continue
        try:
            evaluations.append(_evaluation(record, file.with_suffix(""), by_epoch))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            notes.append(f"{file.relative_to(path)} is left out: {type(error).__name__}: {error}.")
    return Run(
        path=path,
        config=config,
        config_text=config_path.read_text(encoding="utf-8"),
        environment=_read_json(path / "environment.json", notes) or {},
        metrics=metrics,
        evaluations=sorted(evaluations, key=lambda e: e.epoch),
        notes=notes,
        stopped=_read_json(path / "stopped.json", notes) or {},
    )


def _read_json(path: Path, notes: list[str]) -> dict[str, Any] | None:
    """The mapping in a file, or None (with a note, unless the file is simply not there yet)."""
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        notes.append(f"{path.name} is left out: it is not complete JSON (it may be being written).")
        return None
    if not isinstance(record, dict):
        notes.append(f"{path.name} is left out: it does not hold a JSON object.")
        return None
    return record


def _evaluation(record: Mapping[str, Any], folder: Path, metrics: Mapping[int, Mapping[str, Any]]) -> Evaluation:
    epoch = int(record["epoch"])
    costs = {}
    for key in COSTS:
        value = record.get(key, metrics.get(epoch, {}).get(key, 0 if epoch == 0 else None))
        if value is not None:
            costs[key] = float(value)
    strips = {
        int(file.stem.removeprefix("steps_")): file
        for file in folder.glob("steps_*.png")
        if file.stem.removeprefix("steps_").isdigit()
    }
    unseen, judge = record.get("unseen"), record.get("judge")
    return Evaluation(
        epoch=epoch,
        costs=costs,
        seen=_split(record),
        unseen=_split(unseen) if unseen else None,
        judge=None if judge is None else str(judge),
        strips=dict(sorted(strips.items())),
        monitors={
            str(name): {int(steps): float(by_steps[steps]) for steps in sorted(by_steps, key=int)}
            for name, by_steps in (record.get("monitors") or {}).items()
        },
    )


def _split(record: Mapping[str, Any]) -> Split:
    scores = {
        str(name): {int(steps): np.asarray(by_steps[steps], dtype=np.float64) for steps in sorted(by_steps, key=int)}
        for name, by_steps in (record.get("scores") or {}).items()
    }
    prompts, seeds = record.get("prompts") or [], record.get("seeds") or []
    return Split([str(p) for p in prompts], [int(s) for s in seeds], scores)
