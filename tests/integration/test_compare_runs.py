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
from helpers import bad_rewards
from helpers.command_line import Run, failed, succeeded
from helpers.paths import TESTS, import_path

from sdpo import Config, Trainer
from sdpo.cli.main import main
from sdpo.commands.compare.plan import plan_runs
from sdpo.commands.compare.training import train_missing
from sdpo.method.algorithms import GRADIENT_ALGORITHMS, POLICY_ALGORITHMS

NOTHING = bad_rewards.path_to("nothing")
VARIANTS = f"""
grpo: {{algorithm: {{branches: 4}}, sample: {{prompts_per_epoch: 4}}, train: {{batch_size: 2}}}}
refused: {{rewards: {{'{NOTHING}': 1.0}}}}
crashing: {{rewards: {{colorfulness: 1.0}}, prompts: {{train: [explode]}}}}
"""

COMPARED = [*POLICY_ALGORITHMS, *GRADIENT_ALGORITHMS]

Command = list[str]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_overrides: list[str]) -> Path:
    """A folder with settings and variants."""
    folder = tmp_path_factory.mktemp("compare")
    (folder / "tiny.yaml").write_text(Config.load("emoji", tiny_overrides).to_yaml())
    (folder / "variants.yaml").write_text(VARIANTS)
    return folder


@pytest.fixture(scope="module")
def command(folder: Path) -> Command:
    """The start of a command, up to the names to compare."""
    return ["compare", f"{folder}/tiny.yaml", "--seeds", "1", "--variants", f"{folder}/variants.yaml", "--algorithms"]


@pytest.fixture(scope="module")
def whole(folder: Path, command: Command) -> Path:
    """A comparison of all algorithms; tests copy what they change."""
    assert main([*command, ",".join(COMPARED), "--output-dir", str(folder / "whole")]) == 0
    return folder / "whole"


def numbers(folder: Path) -> list[dict[str, str]]:
    """Return the rows of the CSV without the time."""
    return [row | {"seconds": ""} for row in csv.DictReader((folder / "comparison.csv").open())]


def test_every_algorithm_begins_with_the_base_model(sdpo: Run, command: Command, whole: Path) -> None:
    names = ",".join(COMPARED)
    assert "grpo-seed42: 0 of 2 epochs" in succeeded(sdpo(*command, names, "--dry-run")).stdout
    table = numbers(whole)
    assert {row["name"] for row in table} == set(COMPARED)
    assert {row["images"] for row in table} == {"0", "16", "32"}, "of one trajectory a group, twice as many groups"
    before = {row["value"] for row in table if row["epoch"] == "0" and row["steps"] == "1"}
    assert len({float(f"{float(value):.5g}") for value in before}) == 1


def test_runs_without_weights_count_as_finished_by_their_numbers(
    sdpo: Run, tmp_path: Path, command: Command, whole: Path
) -> None:
    shutil.copytree(whole, tmp_path / "copy")
    for run in (tmp_path / "copy" / "runs").iterdir():
        for name in ("checkpoints", "lora"):
            shutil.rmtree(run / name)
        (run / "report.html").unlink()
    again = succeeded(sdpo(*command, ",".join(COMPARED), "--output-dir", "copy"))
    assert f"{len(COMPARED)} of {len(COMPARED)} runs are finished" in again.stdout
    directories = [f"{name}=copy/runs/{name}-seed42" for name in COMPARED]
    succeeded(sdpo("compare", *directories, "--output-dir", "named"))
    assert numbers(tmp_path / "named") == numbers(tmp_path / "copy") == numbers(whole)


def test_an_interrupted_comparison_is_completed_by_the_same_command(
    sdpo: Run, tmp_path: Path, command: Command, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["sdpo", "rebel", "grpo"]
    pieces = [*command, ",".join(names), "--output-dir", "pieces"]
    calls, train_epoch = [], Trainer.train_epoch

    def stopped(trainer: Trainer) -> dict[str, Any]:
        calls.append(trainer.session.epoch)
        if len(calls) == 4:  # within the second run
            raise KeyboardInterrupt
        return train_epoch(trainer)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_epoch", stopped)
        assert sdpo(*pieces).returncode == 130
    assert "1 of 3 runs are finished" in succeeded(sdpo(*pieces)).stdout
    by_name = {name: [row for row in numbers(whole) if row["name"] == name] for name in names}
    assert numbers(tmp_path / "pieces") == [row for name in names for row in by_name[name]]
    failed(sdpo(*pieces, "train.learning_rate=0.5"), "train.learning_rate: 0.001 → 0.5")


def test_a_failing_run_costs_no_other(
    sdpo: Run, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = Trainer.train

    def crash(trainer: Trainer) -> Path:
        if trainer.parts.prompts[0].text == "explode":
            raise RuntimeError("a fault of the program")
        return train(trainer)

    monkeypatch.setattr(Trainer, "train", crash)
    result = sdpo(*command, "refused,crashing,sdpo", "--output-dir", "out")
    assert result.returncode == 2  # the fault of the program comes with its traceback
    for words in ("2 of 3 runs failed", "refused-seed42: ", NOTHING, "a fault of the program", "test_compare"):
        assert words in result.stderr, result.stderr
    assert {row["name"] for row in numbers(tmp_path / "out")} == {"sdpo"}
    failed(sdpo(*command, "refused", "--output-dir", "none"), "nothing to compare", NOTHING)


def test_runs_in_processes(sdpo: Run, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", import_path(TESTS))
    both = [*command, "sdpo,refused", "epochs=1", "--output-dir"]
    result = sdpo(*both, "children", "--processes", "2")
    failed(result, f"refused-seed42: reward {NOTHING!r} returned shape (0,)")
    assert "sdpo-seed42: finished" in result.stdout
    failed(sdpo(*both, "here"), f"refused-seed42: reward {NOTHING!r} returned shape (0,)")
    for child, here in zip(numbers(tmp_path / "children"), numbers(tmp_path / "here"), strict=True):
        assert float(child.pop("value")) == pytest.approx(float(here.pop("value")), rel=1e-3)
        assert child == here


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
    sdpo: Run, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
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
