"""The layout of a run's directory."""

from __future__ import annotations

from pathlib import Path

import pytest

from sdpo.errors import UserError
from sdpo.run.directory import RunDirectory, create


def test_evaluations_are_listed_by_epoch_whatever_the_number_of_digits(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.evaluations.mkdir()
    files = [run.evaluation(epoch) for epoch in (0, 30, 9999, 10000, 20000)]
    for file in reversed(files):
        file.touch()
    assert list(run.evaluation_files()) == files
    assert set(run.evaluations_after(9999)) == {run.evaluation(10000), run.evaluation(20000)}


def test_only_the_main_process_creates_the_directory(tmp_path: Path) -> None:
    assert not create(tmp_path / "a" / "b", main=False).path.exists()
    assert create(tmp_path / "a" / "b").path.is_dir()
    (tmp_path / "file").touch()
    for main in (True, False):
        with pytest.raises(UserError, match="is a file: name a new or existing directory"):
            create(tmp_path / "file", main)
    with pytest.raises(UserError, match="cannot be created: .*Name another directory"):
        create(tmp_path / "file" / "below")
