"""`sdpo compare` that trains: every algorithm, interruption and repetition, failing runs, child processes."""

from __future__ import annotations

import csv
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.command_line import Run

from sdpo import Config, Trainer
from sdpo.commands.compare.plan import plan_runs
from sdpo.commands.compare.training import train_missing
from sdpo.method.algorithms import ALGORITHMS

VARIANTS = """
grpo: {algorithm: {branches: 4}, sample: {prompts_per_epoch: 4}, train: {batch_size: 2}}
refused: {rewards: {'mine:nothing': 1.0}}
crashing: {rewards: {colorfulness: 1.0}, prompts: {train: [explode]}}
"""


@pytest.fixture
def command(tmp_path: Path, tiny_overrides: list[str]) -> list[str]:
    """Return the start of a command, up to the names to compare; write its settings and variants."""
    config = Config.load("emoji", [*tiny_overrides, "lora={rank: 2, alpha: 4}"])
    (tmp_path / "tiny.yaml").write_text(config.to_yaml())
    (tmp_path / "variants.yaml").write_text(VARIANTS)
    (tmp_path / "mine.py").write_text("def nothing(images, prompts, metadata):\n    return []\n")
    return ["compare", "tiny.yaml", "--seeds", "1", "--variants", "variants.yaml", "--algorithms"]


def numbers(folder: Path) -> list[dict[str, str]]:
    """Return the rows of the CSV without the time."""
    return [row | {"seconds": ""} for row in csv.DictReader((folder / "comparison.csv").open())]


def test_every_algorithm_interrupted_and_repeated(
    sdpo: Run, tmp_path: Path, command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command.append(",".join(ALGORITHMS))
    shown = sdpo(*command, "--dry-run")
    assert shown.returncode == 0 and "grpo-seed42: 0 of 2 epochs" in shown.stdout, shown.stderr
    whole = sdpo(*command, "--output-dir", "whole")
    assert whole.returncode == 0, whole.stderr
    rows = numbers(tmp_path / "whole")
    assert {row["name"] for row in rows} == set(ALGORITHMS) and {row["images"] for row in rows} == {"0", "16", "32"}
    before = {row["value"] for row in rows if row["epoch"] == "0" and row["steps"] == "1"}
    assert len({float(f"{float(value):.5g}") for value in before}) == 1, "all begin with the base model"

    calls, train_epoch = [], Trainer.train_epoch

    def stopped(trainer: Trainer) -> dict[str, Any]:
        calls.append(trainer.session.epoch)
        if len(calls) == 4:  # within the second run
            raise KeyboardInterrupt
        return train_epoch(trainer)

    monkeypatch.setattr(Trainer, "train_epoch", stopped)
    assert sdpo(*command, "--output-dir", "pieces").returncode == 130
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    repeated = sdpo(*command, "--output-dir", "pieces")
    assert repeated.returncode == 0 and "1 of 6 runs are finished" in repeated.stdout, repeated.stderr
    assert numbers(tmp_path / "pieces") == rows

    # Runs without weights, checkpoints and pages count as finished by their numbers.
    for run in (tmp_path / "pieces" / "runs").iterdir():
        for name in ("checkpoints", "lora"):
            shutil.rmtree(run / name)
        (run / "report.html").unlink()
    again = sdpo(*command, "--output-dir", "pieces")
    assert again.returncode == 0 and "6 of 6 runs are finished" in again.stdout, again.stderr
    directories = [f"{name}=pieces/runs/{name}-seed42" for name in ALGORITHMS]
    assert sdpo("compare", *directories, "--output-dir", "named").returncode == 0
    assert numbers(tmp_path / "named") == rows

    refused = sdpo(*command, "--output-dir", "pieces", "train.learning_rate=0.5")
    assert refused.returncode == 2 and "train.learning_rate: 0.001 → 0.5" in refused.stderr


def test_a_failing_run_costs_no_other(
    sdpo: Run, tmp_path: Path, command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    train = Trainer.train

    def crash(trainer: Trainer) -> Path:
        if trainer.parts.prompts[0].text == "explode":
            raise RuntimeError("a fault of the program")
        return train(trainer)

    monkeypatch.setattr(Trainer, "train", crash)
    result = sdpo(*command, "refused,crashing,sdpo", "--output-dir", "out")
    assert result.returncode == 2
    for words in ("2 of 3 runs failed", "refused-seed42: ", "mine:nothing", "a fault of the program", "test_compare"):
        assert words in result.stderr, result.stderr
    assert {row["name"] for row in numbers(tmp_path / "out")} == {"sdpo"}
    nothing = sdpo(*command, "refused", "--output-dir", "none")
    assert nothing.returncode == 2 and "nothing to compare" in nothing.stderr and "mine:nothing" in nothing.stderr


def test_runs_in_processes(sdpo: Run, tmp_path: Path, command: list[str]) -> None:
    command += ["sdpo,refused", "--output-dir"]
    result = sdpo(*command, "spread", "--processes", "2", "epochs=1")
    assert result.returncode == 2 and "sdpo-seed42: finished" in result.stdout, result.stdout
    assert "refused-seed42: " in result.stderr and "mine:nothing" in result.stderr, result.stderr
    assert "Traceback" not in result.stderr
    sdpo(*command, "here", "epochs=1")
    for spread, here in zip(numbers(tmp_path / "spread"), numbers(tmp_path / "here"), strict=True):
        assert float(spread.pop("value")) == pytest.approx(float(here.pop("value")), rel=1e-3)
        assert spread == here


def test_processes_have_their_share_of_threads_and_of_the_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell script takes the place of Python: `$4` is the configuration, `$6` the run's directory."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 5)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    python = tmp_path / "python"
    python.write_text(
        '#!/bin/sh\nmkdir -p "$6"\ncp "$4" "$6/given"\n'
        'echo "$OMP_NUM_THREADS $*" > "$6/said"\nsleep 0.2\necho "warning: hot" >&2\n'
        'case "$6" in *ddpo-seed2) echo "sdpo: error: no room" >&2; exit 2;; esac\n'
    )
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    planned = plan_runs("emoji", [], ["sdpo", "ddpo"], 2, 1, tmp_path)
    said: list[str] = []
    assert train_missing(planned, 2, said.append) == {"ddpo-seed2": "no room"}
    assert "sdpo-seed1: finished; warning: hot" in said and "ddpo-seed2: failed: no room" in said
    calls = [(run.path / "said").read_text() for run in planned]
    assert all(call.startswith("2 -m sdpo train ") and f".yaml --output-dir {tmp_path}/runs/" in call for call in calls)
    assert [(run.path / "given").read_text() for run in planned] == [run.config.to_yaml() for run in planned]
    assert not any((run.path / "config.yaml").exists() for run in planned), "that is for the process to write"
    assert {call.split()[-1] for call in calls} == {"device=cuda:0", "device=cuda:1"}
    assert ["training" in text for text in said[1:4]] == [True, True, False], "two at once, not more"


def test_an_interrupt_ends_the_processes(
    sdpo: Run, tmp_path: Path, command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[subprocess.Popen[bytes]] = []

    def popen(*arguments: Any, **options: Any) -> subprocess.Popen[bytes]:
        started.append(subprocess.Popen(*arguments, **options))
        return started[-1]

    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    fake = SimpleNamespace(Popen=popen, DEVNULL=subprocess.DEVNULL)
    monkeypatch.setattr("sdpo.commands.compare.training.subprocess", fake)
    monkeypatch.setattr("sdpo.commands.compare.training.time", SimpleNamespace(sleep=interrupt))
    assert sdpo(*command, "sdpo,ddpo,rebel", "--output-dir", "out", "--processes", "2").returncode == 130
    assert len(started) == 2 and all(process.poll() is not None for process in started)
