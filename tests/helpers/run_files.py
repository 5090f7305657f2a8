"""The files of a run's directory, read without the code that wrote them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

LORA = "pytorch_lora_weights.safetensors"


def rows(run: Path) -> list[dict[str, Any]]:
    """The rows of a run's metrics."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def rows_without_time(run: Path) -> list[dict[str, Any]]:
    """The rows of a run's metrics, without the seconds, in which two equal runs differ."""
    timed = ("seconds", "evaluation/seconds")
    return [{name: value for name, value in row.items() if name not in timed} for row in rows(run)]


def epochs(run: Path) -> list[int]:
    """The epochs of a run's metrics, in order."""
    return [row["epoch"] for row in rows(run)]


def evaluation(run: Path, epoch: int) -> dict[str, Any]:
    """The record of the evaluation after an epoch; that of the base model after epoch 0."""
    found: dict[str, Any] = json.loads((run / "evaluation" / f"epoch_{epoch:04d}.json").read_text())
    return found


def lora_weights(run: Path) -> dict[str, Tensor]:
    """The weights of a run's result."""
    return load_file(run / "lora" / LORA)


def contents(folder: Path, pattern: str = "*") -> dict[str, bytes | None]:
    """The files below a folder whose names match a pattern, with their bytes, and the folders, with None."""
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob(pattern))}
