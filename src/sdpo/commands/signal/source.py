"""The configuration that `sdpo signal` measures: a preset, a file, or a run with its trained weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sdpo.config import Config
from sdpo.config.load import DEFAULT_PRESET, preset_names, split_words
from sdpo.errors import UserError
from sdpo.run.directory import RunDirectory
from sdpo.run.environment import check_format
from sdpo.run.result import read_result


def read_words(words: Sequence[str]) -> tuple[Config, Path]:
    """Read the words of the command line.

    Args:
        words: a preset, a YAML file or a run's directory, and overrides `section.key=value`.

    Returns:
        The configuration, which starts from the run's trained weights if there is a run, and the folder of the result
        by default.

    Raises:
        UserError: if the words name no preset, file or run, the run has no result yet, or a setting is not legal.
    """
    source, overrides = split_words(words)
    run = RunDirectory(Path(source)) if source is not None and source not in preset_names() else None
    if run is None or not run.path.is_dir():
        return Config.load(source, overrides), Path("runs") / f"signal-{Path(source or DEFAULT_PRESET).stem}"
    if not run.is_run:
        raise UserError(f"{run.path} is not the directory of a run: it has no {run.config.name}")
    check_format(run)
    config = Config.load(run.config, overrides)
    if read_result(run, config) is None:
        raise UserError(f"{run.path} has no finished weights yet: rerun its train command to finish the run")
    return _at_trained_weights(config, run), run.path / "signal"


def _at_trained_weights(config: Config, run: RunDirectory) -> Config:
    """The configuration with the run's trained weights in place of those that it started from."""
    data: dict[str, Any] = config.model_dump(mode="json")
    if config.lora is not None:
        data["lora"] |= {"path": str(run.lora)}
    else:
        # The scheduler and the fused LoRA were saved with the weights.
        data["model"] |= {
            "path": str(run.model),
            "revision": "main",
            "variant": None,
            "scheduler": None,
            "fuse_lora": None,
        }
    return Config.parse(data)
