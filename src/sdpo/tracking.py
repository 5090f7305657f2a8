"""metrics.jsonl, the trackers, and the progress bar."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from sdpo.errors import UserError
from sdpo.files import write_whole


def read_rows(path: Path) -> tuple[list[dict[str, Any]], list[int]]:
    """The rows of a `metrics.jsonl` by epoch, and the numbers of the lines that are none, such as a half-written one.

    A run that went on from an earlier checkpoint writes some epochs again: the later row counts.
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
        """Keep the rows up to `last_epoch` (0: none); a resumed run writes the later ones again."""
        rows = self.read(last_epoch)
        missing = [str(epoch) for epoch in range(1, last_epoch + 1) if epoch not in {row["epoch"] for row in rows}]
        if missing:  # no kill does this: someone changed the file
            print(f"sdpo: warning: {self.path} lacks the epochs {', '.join(missing)}", file=sys.stderr)
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


class Trackers:
    """The user's trackers, through accelerate."""

    def __init__(self, names: list[str], run_dir: Path, config: dict[str, Any]) -> None:
        self._accelerator = None
        if not names:
            return
        from accelerate import Accelerator
        from accelerate.tracking import get_available_trackers
        from accelerate.utils import LoggerType

        known = [str(member.value) for member in LoggerType if member.value != "all"]
        for name in names:
            if name not in known:
                raise UserError(f"trackers: there is no tracker {name!r}; accelerate knows {', '.join(known)}")
            if name not in map(str, get_available_trackers()):
                raise UserError(f"trackers: {name!r} is not installed: pip install {name}")
        try:
            self._accelerator = Accelerator(log_with=names, project_dir=str(run_dir), cpu=True)
            self._accelerator.init_trackers("sdpo", config=_flat(config))
        except Exception as error:  # a tracker's own failure (no login, no network): the run has not begun
            raise UserError(f"trackers: {', '.join(names)} cannot be started: {error}") from error

    def log(self, row: dict[str, Any]) -> None:
        """Log an epoch."""
        if self._accelerator is not None:
            known = {name: value for name, value in row.items() if value is not None}
            self._accelerator.log(known, step=row["epoch"])

    def close(self) -> None:
        """Finish; the processes' group stays, which `Accelerator.end_training` would end."""
        for tracker in self._accelerator.trackers if self._accelerator is not None else []:
            tracker.finish()


class ProgressBar:
    """Epochs with reward, loss and time left; silent where the output is not a terminal."""

    def __init__(self, total: int, done: int) -> None:
        self._bar = Progress(
            TextColumn("epoch"),
            MofNCompleteColumn(),
            BarColumn(),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(),
            disable=not sys.stdout.isatty(),
        )
        self._task = self._bar.add_task("train", total=total, completed=done, note="")

    def __enter__(self) -> ProgressBar:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def advance(self, row: dict[str, Any]) -> None:
        """One epoch is done."""
        note = f"reward {row['reward/last_step']:.4g}  loss {row['train/loss']:.4g}"
        self._bar.update(self._task, advance=1, note=note)


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value if isinstance(value, int | float | str | bool) else str(value)
    return flat
