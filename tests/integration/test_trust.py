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
from helpers import bad_rewards, small_run
from helpers import forked_processes as forked
from helpers.command_line import Run, failed, succeeded
from helpers.run_files import epochs, rows, rows_without_time
from helpers.spoiled_loss import spoiled_loss
from safetensors.torch import load_file

from sdpo.cli.main import main
from sdpo.loop.policy_update import PolicyUpdate
from sdpo.method.algorithms import SDPO
from sdpo.run.checkpoint import CheckpointStore


@pytest.fixture
def command(tiny_pipeline: Path, tmp_path: Path) -> list[str]:
    return small_run.arguments(tiny_pipeline, tmp_path / "run")


# -- rewards ---------------------------------------------------------------------------------------------------------


def test_a_reward_that_hangs(sdpo: Run, command: list[str]) -> None:
    name = bad_rewards.path_to("hangs")
    failed(sdpo(*command, f"rewards={{'{name}': 1}}", "scoring.timeout=0.2"), name, "within 0.2 s")


def test_a_reward_that_breaks_late_loses_no_epoch(sdpo: Run, tmp_path: Path, command: list[str]) -> None:
    name = bad_rewards.path_to("Breaks")
    settings = [f"rewards={{'{name}': 1}}", f"reward_options={{'{name}': {{at: 4, unless: awake}}}}"]
    settings += ["checkpoint.every=100", "evaluate.every=0", "epochs=5"]
    failed(sdpo(*command, *settings), "the judge is asleep", "first prompt")
    (saved,) = CheckpointStore(tmp_path / "run" / "checkpoints").epochs()
    assert saved == len(rows(tmp_path / "run")) >= 1
    (tmp_path / "awake").touch()
    succeeded(sdpo(*command, *settings))
    assert epochs(tmp_path / "run") == [1, 2, 3, 4, 5]


# -- values that are not finite --------------------------------------------------------------------------------------


def spoil(monkeypatch: pytest.MonkeyPatch, at: int | None) -> None:
    """Make the n-th loss NaN, or all of them."""
    monkeypatch.setattr(SDPO, "loss", spoiled_loss(SDPO.loss, at, lambda loss: loss * float("nan")))


def test_a_loss_that_is_not_finite_stops_the_run(
    sdpo: Run, tmp_path: Path, command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, at=6)  # an epoch has two steps of two batches
    failed(sdpo(*command), "epoch 2: the loss of step ", "for prompt '", "in optimizer step 2,", "epoch 1 is intact")
    assert CheckpointStore(tmp_path / "run" / "checkpoints").epochs() == [1]
    succeeded(sdpo(*command))
    assert epochs(tmp_path / "run") == [1, 2, 3]


def test_the_step_of_a_loss_that_is_not_finite_is_skipped_and_counted_on_request(
    sdpo: Run, tmp_path: Path, command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, at=6)
    result = succeeded(sdpo(*command, "train.on_nonfinite=skip"))
    assert "epoch 2: the loss of step " in result.stderr
    assert [row["train/skipped_steps"] for row in rows(tmp_path / "run")] == [0, 1, 0]
    weights = load_file(tmp_path / "run" / "checkpoints" / "3" / "weights.safetensors")
    assert weights and all(w.isfinite().all() for w in weights.values())
    spoil(monkeypatch, at=None)
    result = sdpo(*command, "train.on_nonfinite=skip", "--output-dir", "none")
    failed(result, "epoch 1: the loss of step ", "is not finite. No checkpoint had been written")
    adamw8bit = "train={on_nonfinite: skip, optimizer: adamw8bit}"
    failed(sdpo(*command, adamw8bit), "on_nonfinite=skip needs optimizer=adamw")


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
    succeeded(sdpo(*command[:-1], str(run), "checkpoint.keep_last=1", f"epochs={kept.epoch + 1}"))
    assert epochs(run) == list(range(1, kept.epoch + 2))


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
    succeeded(sdpo(*command, "epochs=1"))  # the lock died with the process that held it


# -- another run's directory -----------------------------------------------------------------------------------------


def test_another_configuration_is_told_field_by_field(sdpo: Run, tmp_path: Path, command: list[str]) -> None:
    succeeded(sdpo(*command, "epochs=1"))
    said = failed(sdpo(*command, "train.learning_rate=0.5", "seed=1", "lora=null"))
    for line in (r"train\.learning_rate: 0\.001 → 0\.5", "seed: 42 → 1", "lora: {.*'rank': 2.*} → None"):
        assert re.search(rf"^  {line}$", said, re.MULTILINE), said
    assert "train.batch_size" not in said and "train.micro_batch" in said.splitlines()[-1]
    changed = ["scoring.timeout=60", "train.micro_batch=1", "evaluate={steps: [2], every: 1}", "checkpoint.keep_last=1"]
    succeeded(sdpo(*command, "epochs=2", *changed))
    assert "eval/colorfulness/2" in rows(tmp_path / "run")[1]
    (tmp_path / "run" / "config.yaml").unlink()
    failed(sdpo(*command), "not the config.yaml of their run")


def test_the_run_of_a_newer_version(sdpo: Run, tmp_path: Path, command: list[str]) -> None:
    succeeded(sdpo(*command, "epochs=1"))
    path = tmp_path / "run" / "environment.json"
    record = json.loads(path.read_text())
    assert record["format"] == 1
    path.write_text(json.dumps({**record, "format": 7, "sdpo": "9.0"}))
    for words in (command, ["sample", "run", "cat"], ["evaluate", "run"]):
        failed(sdpo(*words), "made by sdpo 9.0", "format 7", "Upgrade sdpo")


def test_a_damaged_checkpoint_is_passed_over(sdpo: Run, tmp_path: Path, command: list[str]) -> None:
    succeeded(sdpo(*command))
    run = tmp_path / "run"
    metrics, checkpoint = rows_without_time(run), CheckpointStore(run / "checkpoints").load(3).copy()
    weights = run / "checkpoints" / "3" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    result = succeeded(sdpo(*command))
    assert "trained epochs 3 to 3" in result.stdout
    assert "3 is damaged: weights.safetensors" in result.stderr
    assert "Resuming from the checkpoint of epoch 2" in result.stderr
    assert rows_without_time(run) == metrics
    assert small_run.same(load_file(weights), checkpoint.weights)
    for epoch in (1, 2, 3):
        (run / "checkpoints" / str(epoch) / "state.pt").write_bytes(b"")
    failed(sdpo(*command), "none of the checkpoints", "Delete that folder to start over")
    assert rows_without_time(run) == metrics
