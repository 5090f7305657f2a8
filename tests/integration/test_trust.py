"""Promises of a run: what fails says what and where, and nothing that was there is lost."""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import forked_processes as forked
from helpers import small_run as micro
from helpers.command_line import Run
from safetensors.torch import load_file

from sdpo.cli.main import main
from sdpo.loop.policy_update import PolicyUpdate
from sdpo.method.algorithms import SDPO
from sdpo.method.types import LossOutput
from sdpo.run.checkpoint import CheckpointStore

REWARDS = """
import os, time, torch
calls = 0
def slow(images, prompts, metadata):
    time.sleep(60)
def complex(images, prompts, metadata):
    return images.mean((1, 2, 3)) + 1j
def flat(images, prompts, metadata):
    return torch.zeros(len(prompts), 1)
def breaks(images, prompts, metadata):
    global calls
    calls += 1
    if calls == 4 and not os.path.exists("awake"):
        raise RuntimeError("the judge fell asleep")
    return images.mean((1, 2, 3))
"""


def failed(result: Any, *words: str) -> str:
    assert result.returncode == 2, (result.returncode, result.stdout, result.stderr)
    assert "Traceback" not in result.stderr
    for word in words:
        assert word in result.stderr, result.stderr
    return str(result.stderr)


@pytest.fixture
def command(tiny_pipeline: Path, tmp_path: Path) -> list[str]:
    (tmp_path / "mine.py").write_text(REWARDS)
    return micro.arguments(tiny_pipeline, tmp_path / "run")


# -- rewards ---------------------------------------------------------------------------------------------------------


def test_rewards_that_hang_or_return_what_is_no_score(sdpo: Run, command: list[str]) -> None:
    failed(sdpo(*command, "rewards={'mine:slow': 1}", "scoring.timeout=0.2"), "mine:slow", "within 0.2 s")
    failed(sdpo(*command, "rewards={'mine:complex': 1}"), "mine:complex", "complex")
    failed(sdpo(*command, "rewards={'mine:flat': 1}"), "shape (3, 1) for 3 images")


def test_a_reward_that_breaks_late_loses_no_epoch(sdpo: Run, tmp_path: Path, command: list[str]) -> None:
    settings = ["rewards={'mine:breaks': 1}", "checkpoint.every=100", "evaluate.every=0", "epochs=5"]
    failed(sdpo(*command, *settings), "the judge fell asleep", "first prompt")
    (saved,) = CheckpointStore(tmp_path / "run" / "checkpoints").epochs()
    assert saved == len(micro.rows(tmp_path / "run")) >= 1
    (tmp_path / "awake").touch()
    assert sdpo(*command, *settings).returncode == 0
    assert [row["epoch"] for row in micro.rows(tmp_path / "run")] == [1, 2, 3, 4, 5]


# -- values that are not finite --------------------------------------------------------------------------------------


def spoil(monkeypatch: pytest.MonkeyPatch, at: int | None) -> None:
    """Make the n-th loss NaN, or all of them."""
    loss, calls = SDPO.loss, []

    def spoiled(self: SDPO, batch: Any) -> LossOutput:
        calls.append(0)
        output = loss(self, batch)
        return LossOutput(output.loss * float("nan"), output.metrics) if at in (None, len(calls)) else output

    monkeypatch.setattr(SDPO, "loss", spoiled)


def test_a_loss_that_is_not_finite_stops_the_run(
    sdpo: Run, tmp_path: Path, command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, at=6)  # an epoch has two steps of two batches
    failed(sdpo(*command), "epoch 2: the loss of step ", "for prompt '", "in optimizer step 2,", "epoch 1 is intact")
    assert CheckpointStore(tmp_path / "run" / "checkpoints").epochs() == [1]
    assert sdpo(*command).returncode == 0
    assert [row["epoch"] for row in micro.rows(tmp_path / "run")] == [1, 2, 3]


def test_or_its_step_is_skipped_and_counted(
    sdpo: Run, tmp_path: Path, command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, at=6)
    result = sdpo(*command, "train.on_nonfinite=skip")
    assert result.returncode == 0 and "epoch 2: the loss of step " in result.stderr
    assert [row["train/skipped_steps"] for row in micro.rows(tmp_path / "run")] == [0, 1, 0]
    weights = load_file(tmp_path / "run" / "checkpoints" / "3" / "weights.safetensors")
    assert all(w.isfinite().all() for w in weights.values())
    spoil(monkeypatch, at=None)
    result = sdpo(*command, "train.on_nonfinite=skip", "--output-dir", "none")
    failed(result, "epoch 1: the loss of step ", "is not finite. No checkpoint had been written")
    failed(
        sdpo(*command, "train={on_nonfinite: skip, optimizer: adamw8bit}"), "on_nonfinite=skip needs optimizer=adamw"
    )


def poison(update: PolicyUpdate) -> None:
    with torch.no_grad():
        update.optimization.parameters[0].fill_(float("nan"))


def test_weights_that_are_not_finite_are_never_saved(
    sdpo: Run, tmp_path: Path, command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    check, epochs = PolicyUpdate.check, itertools.count(1)

    def before(self: PolicyUpdate, *arguments: Any) -> str | None:  # as by a last optimizer step that was too long
        if next(epochs) == 2:
            poison(self)
        return check(self, *arguments)

    def after(self: PolicyUpdate, *arguments: Any) -> str | None:
        found = check(self, *arguments)
        poison(self)
        return found

    monkeypatch.setattr(PolicyUpdate, "check", before)
    failed(sdpo(*command), "epoch 2: the weight ", ".weight is not finite", "epoch 1 is intact")
    assert CheckpointStore(tmp_path / "run" / "checkpoints").epochs() == [1]
    monkeypatch.setattr(PolicyUpdate, "check", after)
    words = ("epoch 3: the log-probability of step 0 of branch 0 for prompt '", "while sampling")
    failed(sdpo(*command), *words)
    unaveraged = [*command[:-1], "other", "evaluate.every=1", "train.ema_decay=null"]
    failed(sdpo(*unaveraged), "the image for prompt 'cat' has values that are not finite")


# -- disks and directories -------------------------------------------------------------------------------------------


def test_a_disk_that_fills_up(sdpo: Run, small_disk: Path, command: list[str]) -> None:
    run = small_disk / "run"
    failed(sdpo(*command[:-1], str(run), "checkpoint.keep_last=100", "epochs=60"), "MB free")
    kept = CheckpointStore(run / "checkpoints").newest()
    assert kept is not None and kept.epoch == CheckpointStore(run / "checkpoints").epochs()[-1]
    ballast = sorted(p for p in (run / "checkpoints").iterdir() if p.name != str(kept.epoch))
    for folder in ballast:
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
    result = sdpo(*command[:-1], str(run), "checkpoint.keep_last=1", f"epochs={kept.epoch + 1}")
    assert result.returncode == 0, result.stderr
    assert [row["epoch"] for row in micro.rows(run)] == list(range(1, kept.epoch + 2))


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a directory that not even root can write to")
def test_a_directory_that_cannot_be_written_to(sdpo: Run, command: list[str]) -> None:
    failed(sdpo(*command[:-1], "/proc/self"), "--output-dir /proc/self cannot be written to")
    failed(sdpo(*command[:-1], "/proc/self/run"), "--output-dir /proc/self/run cannot be created")


def test_two_runs_in_one_directory(sdpo: Run, tmp_path: Path, command: list[str]) -> None:
    process = forked.start(main, [*command, "epochs=1000"], log=tmp_path / "log")
    while not (tmp_path / "run" / "metrics.jsonl").exists() and process.is_alive():
        time.sleep(0.01)
    failed(sdpo(*command), "another run is going on in", f"process {process.pid} on ")
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    assert sdpo(*command, "epochs=1").returncode == 0, "the lock died with the process that held it"


# -- another run's directory -----------------------------------------------------------------------------------------


def test_another_configuration_is_told_field_by_field(sdpo: Run, tmp_path: Path, command: list[str]) -> None:
    assert sdpo(*command, "epochs=1").returncode == 0
    said = failed(sdpo(*command, "train.learning_rate=0.5", "seed=1", "lora=null"))
    for line in (r"train\.learning_rate: 0\.001 → 0\.5", "seed: 42 → 1", "lora: {.*'rank': 2.*} → None"):
        assert re.search(rf"^  {line}$", said, re.MULTILINE), said
    assert "train.batch_size" not in said and "train.micro_batch" in said.splitlines()[-1]
    changed = ["scoring.timeout=60", "train.micro_batch=1", "evaluate={steps: [2], every: 1}", "checkpoint.keep_last=1"]
    result = sdpo(*command, "epochs=2", *changed)
    assert result.returncode == 0, result.stderr
    assert "eval/colorfulness/2" in micro.rows(tmp_path / "run")[1]
    (tmp_path / "run" / "config.yaml").unlink()
    failed(sdpo(*command), "not the config.yaml of their run")


def test_the_run_of_a_newer_version(sdpo: Run, tmp_path: Path, command: list[str]) -> None:
    assert sdpo(*command, "epochs=1").returncode == 0
    path = tmp_path / "run" / "environment.json"
    record = json.loads(path.read_text())
    assert record["format"] == 1
    path.write_text(json.dumps({**record, "format": 7, "sdpo": "9.0"}))
    for words in (command, ["sample", "run", "cat"], ["evaluate", "run"]):
        failed(sdpo(*words), "made by sdpo 9.0", "format 7", "Upgrade sdpo")


def test_a_damaged_checkpoint_is_passed_over(sdpo: Run, tmp_path: Path, command: list[str]) -> None:
    assert sdpo(*command).returncode == 0
    run = tmp_path / "run"
    whole = (micro.rows(run), CheckpointStore(run / "checkpoints").load(3).copy())  # of its own: the file is damaged
    weights = run / "checkpoints" / "3" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    result = sdpo(*command)
    assert result.returncode == 0 and "trained epochs 3 to 3" in result.stdout
    assert (
        "3 is damaged: weights.safetensors" in result.stderr
        and "Resuming from the checkpoint of epoch 2" in result.stderr
    )
    assert micro.rows(run) == whole[0]
    assert micro.same(load_file(weights), whole[1].weights)
    for epoch in (1, 2, 3):
        (run / "checkpoints" / str(epoch) / "state.pt").write_bytes(b"")
    failed(sdpo(*command), "none of the checkpoints", "Delete that folder to start over")
    assert micro.rows(run) == whole[0]
