"""The target of `sdpo evaluate` and `sdpo sample`: a run's directory, or a model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sdpo.config import Config
from sdpo.errors import UserError
from sdpo.run.checkpoint import CheckpointStore
from sdpo.run.directory import RunDirectory
from sdpo.run.environment import check_format
from sdpo.run.result import read_result
from sdpo.system.log import is_main_process, logger


@dataclass(frozen=True)
class Target:
    """A run with its base and its tuned model, or a model alone.

    Attributes:
        config: the run's configuration, or the default configuration around the model.
        run: the run's directory; None for a model.
    """

    config: Config
    run: RunDirectory | None


def open_target(target: str) -> Target:
    """Open a run's directory, or a model.

    Logs a warning where the run has trained further than its result.

    Args:
        target: a run's directory, or a model as `model.path` names it.

    Raises:
        UserError: if there is no such directory, or the run has no result yet.
    """
    run = RunDirectory(Path(target))
    if not run.path.exists() and (run.path.is_absolute() or target.startswith(".")):
        raise UserError(f"there is no run and no model at {target}")
    if not run.is_run:
        return Target(Config.load(None, model={"path": target}), None)
    check_format(run)
    config = Config.of_run(run.config)
    result = read_result(run, config)
    if result is None:
        raise UserError(f"{run.path} has no finished weights yet: rerun its train command to finish the run")
    newest = max(CheckpointStore(run.checkpoints).epochs(), default=0)
    if newest > result.epoch and is_main_process():
        logger.warning("%s has trained to epoch %d; its result is that of epoch %d", run.path, newest, result.epoch)
    return Target(config, run)
