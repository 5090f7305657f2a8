"""A run that is killed, at any moment and any number of times, ends where an undisturbed one ends, to the last bit."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from helpers import forked_processes as forked
from helpers import small_run
from helpers.run_files import epochs

from sdpo import Trainer
from sdpo.cli.main import main
from sdpo.run.checkpoint import CheckpointStore

EPOCHS = 12
SETTINGS: dict[str, Any] = dict(epochs=EPOCHS, checkpoint={"every": 2, "keep_last": 2, "keep_best": 1})
CHANGES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree")


def train(model: Path, run: Path, fatal_operation: int | None = None) -> None:
    """Train to the end, or to the n-th operation that changes a file of the run."""
    done = 0

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal done
        writes = event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if (writes or event in CHANGES) and str(run) in str(arguments[0]):
            done += 1
            if done == fatal_operation:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    Trainer(small_run.config(model, run, **SETTINGS)).train()


@pytest.fixture(scope="module")
def undisturbed(tiny_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """A whole run, and how long it took."""
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    forked.start(main, ["presets"], log=run.with_suffix(".log")).join()  # starts the server
    start = time.monotonic()
    process = forked.start(train, tiny_pipeline, run, log=run.with_suffix(".log"))
    process.join(120)
    assert process.exitcode == 0, run.with_suffix(".log").read_text()
    return run, time.monotonic() - start


def test_twenty_kills(tiny_pipeline: Path, tmp_path: Path, undisturbed: tuple[Path, float]) -> None:
    whole, seconds = undisturbed
    run, log = tmp_path / "run", tmp_path / "log"
    chance = random.Random(7)
    kills: list[str] = []
    attempts = 0
    while len(kills) < 20:
        attempts += 1
        assert attempts < 40
        if attempts % 2:  # at a moment
            process = forked.start(train, tiny_pipeline, run, log=log)
            process.join(chance.uniform(0.05, 0.25) * seconds)
            process.kill()
            process.join()
        else:  # at an operation on a file, of a checkpoint as a rule
            process = forked.start(train, tiny_pipeline, run, chance.randrange(1, 60), log=log)
            process.join(120)
        assert process.exitcode in (0, -signal.SIGKILL), log.read_text()
        if process.exitcode == -signal.SIGKILL:
            kills.append("moment" if attempts % 2 else "operation")
    process = forked.start(train, tiny_pipeline, run, log=log)
    process.join(120)
    assert process.exitcode == 0, log.read_text()
    assert min(kills.count("moment"), kills.count("operation")) >= 5
    small_run.assert_same_end(whole, run)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_the_last_epoch_that_ended(
    tiny_pipeline: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    """Also where `checkpoint.every` would have left it out."""
    settings: dict[str, Any] = dict(epochs=6, checkpoint={"every": 100, "keep_last": 1}, evaluate={"every": 0})
    log = tmp_path / "log"
    for name in ("whole", "parts"):
        command = small_run.arguments(tiny_pipeline, tmp_path / name, **settings)
        process = forked.start(main, command, log=log)
        metrics = tmp_path / "parts" / "metrics.jsonl"
        while name == "parts" and process.is_alive() and (not metrics.exists() or metrics.read_text().count("\n") < 3):
            time.sleep(0.01)
        if name == "parts":
            os.kill(process.pid or 0, number)
        process.join(60)
        assert process.exitcode == (code if name == "parts" else 0), log.read_text()
    saved = CheckpointStore(tmp_path / "parts" / "checkpoints").epochs()
    assert saved in ([2], [3], [4]), "2: the signal came between the third row and what comes after it"
    assert f"rerun the same command to resume after epoch {saved[0]}" in log.read_text()
    assert "Traceback" not in log.read_text()
    process = forked.start(main, command, log=log)  # with as many threads as before
    process.join(60)
    assert process.exitcode == 0, log.read_text()
    assert epochs(tmp_path / "parts") == [1, 2, 3, 4, 5, 6]
    small_run.assert_same_end(tmp_path / "whole", tmp_path / "parts")
