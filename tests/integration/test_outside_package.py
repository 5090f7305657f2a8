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
from helpers import small_run
from helpers.command_line import Run, failed, succeeded
from helpers.paths import REPOSITORY
from helpers.run_files import epochs, rows

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
    succeeded(sdpo(*small_run.arguments(tiny_pipeline, folder / "whole", **SETTINGS)))
    command = small_run.arguments(tiny_pipeline, folder / "killed", **SETTINGS)
    (folder / "kill").touch()
    process = forked.start(main, command, log=folder / "log")
    process.join(120)
    assert process.exitcode == -9, (folder / "log").read_text()
    assert epochs(folder / "killed") == [1, 2]
    (folder / "kill").unlink()
    succeeded(sdpo(*command))
    small_run.assert_same_end(folder / "whole", folder / "killed")
    found = rows(folder / "whole")
    assert len({row["train/loss"] for row in found}) == 4 and found[-1]["reward_queries"] == 4 * 16 * 2

    ended = [f"epoch {epoch} of 4" for epoch in range(1, 5)]
    expected = ["evaluation of epoch 0", *ended[:3], "evaluation of epoch 4", ended[3], "finished"]
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
    failed(changed, "algorithm.temperature: 1.5 → 3.0", "algorithm.credit.horizon: 3 → 1")

    (folder / "own_algorithm.py").unlink()
    del sys.modules["own_algorithm"]
    succeeded(sdpo("sample", "killed", "cat", "--steps", "1", "-o", "cat.png"))  # an image needs no algorithm
    failed(sdpo(*command), "'own_algorithm:WeightedRatio' cannot be imported")


def test_a_callback_that_raises_ends_the_run_after_the_epoch_is_saved(
    sdpo: Run, folder: Path, tiny_pipeline: Path
) -> None:
    command = small_run.arguments(tiny_pipeline, folder / "run", callbacks=[{"name": "breaks:Breaks", "at": 2}])
    failed(sdpo(*command), "breaks:Breaks", "OSError: no line to the office")
    assert epochs(folder / "run") == [1, 2]
    succeeded(sdpo(*command, "callbacks=[own_callback:Notes]"))
    assert notes(folder / "run") == ["evaluation of epoch 3", "epoch 3 of 3", "finished"]


def test_doctor_and_the_estimate_of_the_cost(sdpo: Run, folder: Path, tiny_pipeline: Path) -> None:
    arguments = small_run.arguments(tiny_pipeline, folder / "run", **SETTINGS)
    assert " 0 FAIL" in succeeded(sdpo("doctor", arguments[1])).stdout
    assert "16 trajectories, at most 32 reward queries" in succeeded(sdpo(*arguments, "--dry-run")).stdout


def test_a_comparison_with_a_built_in_algorithm(sdpo: Run, folder: Path, tiny_pipeline: Path) -> None:
    file = small_run.arguments(tiny_pipeline, folder / "run", epochs=2, advantage={"normalizer": "pair"})[1]
    names = "sdpo,own_algorithm:WeightedRatio"
    command = ["compare", file, "--algorithms", names, "--seeds", "1", "--output-dir", "compared"]
    succeeded(sdpo(*command))
    table = list(csv.DictReader((folder / "compared" / "comparison.csv").open()))
    assert {row["name"] for row in table} == set(names.split(","))
    assert (folder / "compared" / "runs" / "own_algorithm.WeightedRatio-seed42" / "report.html").is_file()
    assert "2 of 2 runs are finished" in succeeded(sdpo(*command)).stdout
    unknown = sdpo("compare", file, "--algorithms", "own_algorithm:Missing", "--dry-run")
    failed(unknown, "'own_algorithm:Missing' cannot be imported")
