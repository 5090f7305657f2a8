"""Run directories that lack a part, and the rights of the files in one."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from helpers.command_line import Run, failed, succeeded
from helpers.run_files import LORA
from helpers.trained_runs import TrainedRuns


@pytest.fixture
def command(trained_runs: TrainedRuns, tmp_path: Path, tiny_overrides: list[str]) -> list[str]:
    """The command that made the finished run `run`."""
    trained_runs.copy(tmp_path / "run", "emoji", *tiny_overrides)
    return ["train", "emoji", *tiny_overrides, "--output-dir", "run"]


def test_a_config_that_was_cut_off(sdpo: Run, tmp_path: Path, command: list[str]) -> None:
    (tmp_path / "run" / "config.yaml").write_text("")
    failed(sdpo(*command), "another configuration")


def test_evaluations_of_a_discarded_run_do_not_reach_the_report(sdpo: Run, tmp_path: Path, command: list[str]) -> None:
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    succeeded(sdpo(*command, "epochs=1"))
    found = sorted(p.name for p in (tmp_path / "run" / "evaluation").glob("*.json"))
    assert found == ["epoch_0000.json", "epoch_0001.json"]


@pytest.mark.usefixtures("command")
def test_others_can_read_the_weights(tmp_path: Path) -> None:
    before = os.umask(0)
    os.umask(before)
    assert (tmp_path / "run" / "lora" / LORA).stat().st_mode & 0o777 == 0o666 & ~before
