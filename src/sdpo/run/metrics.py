"""`metrics.jsonl`: one JSON object an epoch."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from sdpo.system.durable import write_whole
from sdpo.system.log import logger


def read_rows(path: Path) -> tuple[list[dict[str, Any]], list[int]]:
    """Read the rows of a `metrics.jsonl`.

    A run that resumed from an earlier checkpoint writes some epochs again: the later row counts.

    Returns:
        The rows by epoch, and the numbers of the lines that are no rows, such as a half-written one.
    """
    rows: list[dict[str, Any]] = []
    damaged = []
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n") if path.is_file() else []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            epoch = row["epoch"] = int(row["epoch"])
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
            damaged.append(number)
            continue
        while rows and rows[-1]["epoch"] >= epoch:
            rows.pop()
        rows.append(row)
    return rows, damaged


class MetricsFile:
    """`metrics.jsonl`: one JSON object an epoch, flushed to the disk before the epoch's checkpoint is written."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def start(self, last_epoch: int) -> None:
        """Keep the rows up to `last_epoch`, which may be 0; a resumed run writes the later ones again."""
        rows = self.read(last_epoch)
        missing = [str(epoch) for epoch in range(1, last_epoch + 1) if epoch not in {row["epoch"] for row in rows}]
        if missing:  # no killed process leaves this: the file was edited
            logger.warning("%s lacks the epochs %s", self.path, ", ".join(missing))
        write_whole(self.path, "".join(json.dumps(row) + "\n" for row in rows))

    def read(self, last_epoch: int) -> list[dict[str, Any]]:
        """The rows up to `last_epoch`."""
        return [row for row in read_rows(self.path)[0] if 0 < row["epoch"] <= last_epoch]

    def append(self, row: dict[str, Any]) -> None:
        """Add an epoch."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
