"""An algorithm, a credit rule, a plan, a normaliser and a callback outside the package, through real commands."""

from __future__ import annotations

import csv
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers import forked_processes as forked
from helpers import small_run as micro
from helpers.command_line import Run
from helpers.paths import REPOSITORY

from sdpo.cli.main import main

FATAL = """
import os, signal
from dataclasses import dataclass
from pathlib import Path
from own_algorithm import NextSteps

calls = 0

@dataclass(frozen=True)
class Fatal(NextSteps):
    '''Kills its process in the third epoch, as long as there is a file `kill`.'''
    def __call__(self, dense, discount):
        global calls
        calls += 1
        if calls == 3 and Path("kill").exists():
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(dense, discount)
"""
BREAKS = """
from dataclasses import dataclass
from sdpo import Callback

@dataclass(frozen=True)
class Breaks(Callback):
    at: int
    def on_epoch_end(self, state):
        if state.epoch == self.at:
            raise OSError("no line to the office")
"""
SETTINGS: dict[str, Any] = dict(
    epochs=4,
    algorithm={
        "name": "own_algorithm:WeightedRatio",
        "clip_range": 0.5,
        "temperature": 1.5,
        "credit": {"name": "fatal:Fatal", "horizon": 3},
        "reward_plan": "own_algorithm:EverySecond",
    },
    advantage={"normalizer": {"name": "own_algorithm:RunningMoments", "decay": 0.5}},
    sample={"num_steps": 3, "prompts_per_epoch": 8},
    callbacks=["own_callback:Notes"],
)


@pytest.fixture
def folder(sdpo: Run, tmp_path: Path) -> Iterator[Path]:
    """The working directory, with the user's modules."""
    for name in ("own_algorithm.py", "own_callback.py"):
        shutil.copy(REPOSITORY / "examples" / name, tmp_path)
    (tmp_path / "fatal.py").write_text(FATAL)
    (tmp_path / "breaks.py").write_text(BREAKS)
    yield tmp_path
    for name in ("own_algorithm", "own_callback", "fatal", "breaks"):
        sys.modules.pop(name, None)


def notes(run: Path) -> list[str]:
    """The first words of the lines that the callback has written."""
    return [line.partition(":")[0].partition(";")[0] for line in (run / "notes.txt").read_text().splitlines()]


def test_a_killed_run_is_resumed_to_the_same_bits(sdpo: Run, folder: Path, tiny_pipeline: Path) -> None:
    whole = sdpo(*micro.arguments(tiny_pipeline, folder / "whole", **SETTINGS))
    assert whole.returncode == 0, whole.stderr
    command = micro.arguments(tiny_pipeline, folder / "killed", **SETTINGS)
    (folder / "kill").touch()
    process = forked.start(main, command, log=folder / "log")
    process.join(120)
    assert process.exitcode == -9, (folder / "log").read_text()
    assert [row["epoch"] for row in micro.rows(folder / "killed")] == [1, 2]
    (folder / "kill").unlink()
    resumed = sdpo(*command)
    assert resumed.returncode == 0, resumed.stderr
    micro.assert_same_end(folder / "whole", folder / "killed")
    rows = micro.rows(folder / "whole")
    assert len({row["train/loss"] for row in rows}) == 4 and rows[-1]["reward_queries"] == 4 * 16 * 2

    epochs = [f"epoch {epoch} of 4" for epoch in range(1, 5)]
    expected = ["evaluation of epoch 0", *epochs[:3], "evaluation of epoch 4", epochs[3], "finished"]
    assert notes(folder / "whole") == notes(folder / "killed") == expected

    recorded = yaml.safe_load((folder / "killed" / "config.yaml").read_text())
    assert recorded["algorithm"] == {
        **SETTINGS["algorithm"],
        "discount": 1.0,
        "branches": 2,
        "reward_plan": {"name": "own_algorithm:EverySecond", "stride": 2},
    }
    assert recorded["advantage"]["normalizer"] == SETTINGS["advantage"]["normalizer"]
    changed = sdpo(*command, "algorithm.temperature=3", "algorithm.credit.horizon=1")
    assert changed.returncode == 2 and "Traceback" not in changed.stderr
    assert "algorithm.temperature: 1.5 → 3.0" in changed.stderr
    assert "algorithm.credit.horizon: 3 → 1" in changed.stderr

    (folder / "own_algorithm.py").unlink()
    del sys.modules["own_algorithm"]
    assert sdpo("sample", "killed", "cat", "--steps", "1", "-o", "cat.png").returncode == 0, (
        "an image needs no algorithm"
    )
    gone = sdpo(*command)
    assert gone.returncode == 2 and "'own_algorithm:WeightedRatio' cannot be imported" in gone.stderr


def test_a_callback_that_raises_ends_the_run_after_the_epoch_is_saved(
    sdpo: Run, folder: Path, tiny_pipeline: Path
) -> None:
    command = micro.arguments(tiny_pipeline, folder / "run", callbacks=[{"name": "breaks:Breaks", "at": 2}])
    broken = sdpo(*command)
    assert broken.returncode == 2 and "Traceback" not in broken.stderr
    assert "breaks:Breaks" in broken.stderr and "OSError: no line to the office" in broken.stderr
    assert [row["epoch"] for row in micro.rows(folder / "run")] == [1, 2]
    resumed = sdpo(*command, "callbacks=[own_callback:Notes]")
    assert resumed.returncode == 0, resumed.stderr
    assert notes(folder / "run") == ["evaluation of epoch 3", "epoch 3 of 3", "finished"]


def test_doctor_and_the_estimate_of_the_cost(sdpo: Run, folder: Path, tiny_pipeline: Path) -> None:
    arguments = micro.arguments(tiny_pipeline, folder / "run", **SETTINGS)
    examined = sdpo("doctor", arguments[1])
    assert examined.returncode == 0 and " 0 FAIL" in examined.stdout, examined.stdout + examined.stderr
    estimate = sdpo(*arguments, "--dry-run")
    assert "16 trajectories, at most 32 reward queries" in estimate.stdout, estimate.stderr


def test_a_comparison_with_a_built_in_algorithm(sdpo: Run, folder: Path, tiny_pipeline: Path) -> None:
    file = micro.arguments(tiny_pipeline, folder / "run", epochs=2, advantage={"normalizer": "pair"})[1]
    names = "sdpo,own_algorithm:WeightedRatio"
    command = ["compare", file, "--algorithms", names, "--seeds", "1", "--output-dir", "compared"]
    result = sdpo(*command)
    assert result.returncode == 0, result.stderr
    rows = list(csv.DictReader((folder / "compared" / "comparison.csv").open()))
    assert {row["name"] for row in rows} == set(names.split(","))
    assert (folder / "compared" / "runs" / "own_algorithm.WeightedRatio-seed42" / "report.html").is_file()
    again = sdpo(*command)
    assert again.returncode == 0 and "2 of 2 runs are finished" in again.stdout
    unknown = sdpo("compare", file, "--algorithms", "own_algorithm:Missing", "--dry-run")
    assert unknown.returncode == 2 and "'own_algorithm:Missing' cannot be imported" in unknown.stderr
