"""Runs that are trained once for all tests that begin with them."""

from __future__ import annotations

import shutil
from pathlib import Path

from sdpo.cli.main import main


class TrainedRuns:
    """Trains a run when it is first asked for, and copies it from then on.

    Args:
        folder: where the runs are kept.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._kept: dict[tuple[str, ...], Path] = {}

    def copy(self, target: Path, *words: str) -> Path:
        """Copy a finished run.

        Args:
            target: the directory that is made; a test may change what is in it.
            words: the words of `sdpo train` that the run is trained with, without its directory.
        """
        if words not in self._kept:
            run = self._folder / str(len(self._kept))
            assert main(["train", *words, "--output-dir", str(run)]) == 0
            self._kept[words] = run
        shutil.copytree(self._kept[words], target)
        return target
