"""Whose a directory is: a run writes into a directory that is empty or its own, and into no other."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path

from sdpo.config import Config
from sdpo.errors import UserError, cause
from sdpo.run.checkpoint import CheckpointStore
from sdpo.run.directory import RunDirectory
from sdpo.run.metrics import read_rows
from sdpo.run.result import result_record

_SHOWN = 3  # names of a directory's contents in a message


def check_directory(run: RunDirectory, config: Config) -> None:
    """Refuse a directory in which a run would overwrite or mix with what no run wrote, or with its own base model.

    Args:
        run: the directory, which need not exist.
        config: the configuration of the run.

    Raises:
        UserError: if the directory holds other files than those of a run, or a model or LoRA that the run starts from
            lies where its result will be; nothing has been written then.
    """
    for source in _sources(config):
        for folder in (run.model, run.lora, run.staging, run.checkpoints):
            if os.path.exists(source) and Path(source).resolve().is_relative_to(folder.resolve()):
                raise UserError(
                    f"{source} lies in {folder}, which the run would replace: nothing was changed; name another "
                    "--output-dir"
                )
    found = _contents(run.path)
    if found and not is_of_a_run(run) and not _only_began(run, found):
        more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        raise UserError(
            f"--output-dir {run.path} cannot be written to: it is no run's directory and holds "
            f"{', '.join(found[:_SHOWN])}{more}, which stay as they are. Name a new or an empty directory."
        )


def holds_results(run: RunDirectory) -> bool:
    """Whether a directory holds epochs or weights of a run, which only the run that wrote them may replace."""
    finished = any(result_record(folder).is_file() for folder in (run.lora, run.model))
    return finished or bool(CheckpointStore(run.checkpoints).epochs()) or bool(read_rows(run.metrics)[0])


def _sources(config: Config) -> Iterable[str]:
    """The models and LoRAs that a run starts from, as the configuration names them."""
    yield config.model.path
    if config.model.fuse_lora is not None:
        yield config.model.fuse_lora.path
    if config.lora is not None and config.lora.path is not None:
        yield config.lora.path


def _contents(path: Path) -> list[str]:
    """The names in a directory, sorted; none where there is no such directory."""
    try:
        return sorted(os.listdir(path)) if os.path.isdir(path) else []
    except OSError as error:
        raise UserError(f"--output-dir {path} cannot be read: {cause(error)}") from error


def is_of_a_run(run: RunDirectory) -> bool:
    """Whether a run made the directory, as its environment or a checkpoint tells.

    A `config.yaml` tells nothing: users write such files, and other programs too.
    """
    return _names_sdpo(run.environment) or any(run.checkpoints.glob("[0-9]*/checksums.json"))


def _only_began(run: RunDirectory, found: Iterable[str]) -> bool:
    """Whether a directory's contents are no more than a run leaves that ended before it had written its environment."""
    files = (run.lock, run.staging, run.config, *(p.with_name(f"{p.name}.tmp") for p in (run.config, run.environment)))
    return set(found) <= {file.name for file in files} and (not run.is_run or _is_resolved(run.config))


def _names_sdpo(environment: Path) -> bool:
    """Whether a file is the `environment.json` of a run."""
    try:
        record = json.loads(environment.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(record, dict) and "sdpo" in record


def _is_resolved(file: Path) -> bool:
    """Whether a configuration is one that a run has written, with every setting, and none that a user wrote."""
    try:
        return Config.of_run(file).to_yaml() == file.read_text(encoding="utf-8")
    except (OSError, ValueError, UserError):
        return False
