"""The progress bar of a run."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class ProgressBar:
    """Shows epochs with reward, loss and time left; silent where the output is not a terminal.

    Args:
        total: the number of epochs of the run.
        done: the number of epochs that have ended already.
    """

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
        """Show that an epoch has ended; `row` is the epoch's row of metrics."""
        reward = row["reward/last_step"]  # null in an epoch that rewarded no last step's image
        shown = "" if reward is None else f"reward {reward:.4g}  "
        self._bar.update(self._task, advance=1, note=f"{shown}loss {row['train/loss']:.4g}")
