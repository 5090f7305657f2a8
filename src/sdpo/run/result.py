"""The result of a run: its trained weights, and beside them `result.json`, which names their epoch."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pydantic import TypeAdapter
from torch import Tensor

from sdpo.config import Config
from sdpo.errors import UserError
from sdpo.run.directory import RunDirectory
from sdpo.system.durable import replace_folder

_RECORD = "result.json"


class Savable(Protocol):
    """A model that writes its trained weights for use elsewhere."""

    def save(self, folder: Path, weights: Mapping[str, Tensor] | None = None) -> Path:
        """Write `lora/` or `model/` into a folder; returns the path of what was written."""


@dataclass(frozen=True)
class RunResult:
    """The weights in `lora/` or `model/`; the run may have continued since they were written.

    Attributes:
        epoch: the epoch after which the weights were taken.
        averaged: whether the weights are the moving average.
    """

    epoch: int
    averaged: bool


def result_folder(run: RunDirectory, config: Config) -> Path:
    """The folder of a run's result."""
    return run.lora if config.lora else run.model


def result_record(folder: Path) -> Path:
    """The file in a result's folder that names the epoch of the weights."""
    return folder / _RECORD


def read_result(run: RunDirectory, config: Config) -> RunResult | None:
    """Read the record of a run's result; None where the run has not finished.

    Raises:
        UserError: if the record cannot be read.
    """
    file = result_record(result_folder(run, config))
    if not file.is_file():
        return None
    try:
        return TypeAdapter(RunResult).validate_json(file.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"{file} is damaged: {error}. Rerun the run's train command to write it again.") from error


def write_result(run: RunDirectory, model: Savable, weights: Mapping[str, Tensor], result: RunResult) -> None:
    """Write the trained weights and their record; they replace an earlier result in one step.

    Files that the earlier result's folder has besides, which are the user's, are kept.

    Args:
        run: the run's directory.
        model: the model, whose own weights may be sharded over processes.
        weights: the whole weights by name.
        result: the record of the weights.
    """
    shutil.rmtree(run.staging, ignore_errors=True)
    run.staging.mkdir()
    folder = model.save(run.staging, weights)
    result_record(folder).write_text(json.dumps(dataclasses.asdict(result)) + "\n", encoding="utf-8")
    _keep_others(run.path / folder.name, folder)
    replace_folder(folder, run.path / folder.name)
    run.staging.rmdir()


def _keep_others(old: Path, new: Path) -> None:
    """Copy what a result's folder has and the new one lacks."""
    for path in old.rglob("*"):  # a folder comes before its contents
        target = new / path.relative_to(old)
        if not os.path.lexists(target) and (path.is_symlink() or not path.is_dir()):
            shutil.copy2(path, target, follow_symlinks=False)
        elif not path.is_symlink() and path.is_dir():
            target.mkdir(exist_ok=True)
