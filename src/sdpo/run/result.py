"""Which weights a run's result holds: `result.json` beside them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter

from sdpo.config import Config
from sdpo.errors import UserError

RESULT = "result.json"


@dataclass(frozen=True)
class Result:
    """Which weights `lora/` or `model/` holds: `result.json` in it, as the run may have gone on since.

    Attributes:
        epoch: after which they are.
        averaged: whether they are the moving average.
    """

    epoch: int
    averaged: bool


def read_result(run_dir: Path, config: Config) -> Result | None:
    """Of the weights that a run finished with, or None where it has not yet.

    Raises:
        UserError: if it cannot be read.
    """
    file = run_dir / ("lora" if config.lora else "model") / RESULT
    if not file.is_file():
        return None
    try:
        return TypeAdapter(Result).validate_json(file.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"{file} is damaged: {error}. The run's train command, repeated, writes it anew.") from error
