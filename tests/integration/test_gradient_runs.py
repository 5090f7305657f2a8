"""Runs by reward gradients: killed and resumed to the last bit; one process and two make the same run."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import forked_processes as forked
from helpers import small_run
from helpers.launched_processes import ended, launch
from helpers.run_files import rows_without_time
from torch import Tensor

from sdpo import Trainer

CHANGES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree")


class Brightness:
    """A second reward with a gradient, so that running statistics are part of the state."""

    differentiable = True

    def __call__(self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> Tensor:
        return 5 * images.flatten(1).mean(1)


ALGORITHMS: dict[str, dict[str, Any]] = {
    "srg": dict(
        algorithm={"name": "srg", "num_steps": [1, 2], "steps_per_update": 1},
        rewards={"colorfulness": 1.0, f"{__name__}:Brightness": 0.5},
    ),
    "draft": dict(
        algorithm={"name": "draft", "through": 2, "reward_augment": {"copies": 2, "crop": 0.8, "noise": 0.05}},
        rewards={"colorfulness": 1.0},
    ),
    "hybrid": dict(
        algorithm={"name": "hybrid", "policy": {"name": "sdpo", "clip_range": 0.0}},
        rewards={"colorfulness": 1.0, "jpeg_compressibility": 0.5},
    ),
}


def settings(name: str) -> dict[str, Any]:
    return {**ALGORITHMS[name], "train": {"kl_weight": 0.1, "batch_size": 4}}


def train(model: Path, run: Path, name: str, fatal_operation: int | None = None) -> None:
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
    Trainer(small_run.config(model, run, **settings(name))).train()


def train_and_record(model: Path, run: Path, name: str) -> None:
    """Train, and write this process's weights beside the run's directory."""
    trainer = Trainer(small_run.config(model, run, **settings(name)))
    trainer.train()
    weights = {n: p.detach().clone() for n, p in trainer.parts.backbone.trainable_parameters().items()}
    torch.save(weights, f"{run}.rank{os.environ['RANK']}.pt")


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_killed_run_ends_where_an_undisturbed_one_ends(tiny_pipeline: Path, tmp_path: Path, name: str) -> None:
    log = tmp_path / "log"
    runs = {"whole": [None], "killed": [25, 40, 12, None]}
    for run, operations in runs.items():
        for operation in operations:
            process = forked.start(train, tiny_pipeline, tmp_path / run, name, operation, log=log)
            process.join(120)
            assert process.exitcode == (0 if operation is None else -signal.SIGKILL), log.read_text()
    small_run.assert_same_end(tmp_path / "whole", tmp_path / "killed")


@pytest.mark.parametrize("name", ALGORITHMS)
def test_two_processes_make_the_run_of_one(tiny_pipeline: Path, tmp_path: Path, name: str) -> None:
    found = {}
    for count in (1, 2):
        run = tmp_path / str(count)
        logs = tmp_path / f"{count}.logs"
        codes, texts = ended(launch(count, train_and_record, tiny_pipeline, run, name, logs=logs), logs)
        assert codes == [0] * count, texts
        found[count] = [torch.load(f"{run}.rank{rank}.pt") for rank in range(count)]
    one, (first, second) = found[1][0], found[2]
    for key, weight in one.items():
        torch.testing.assert_close(first[key], weight, atol=1e-5, rtol=0)
        assert torch.equal(first[key], second[key])
    rows = [rows_without_time(tmp_path / str(count)) for count in (1, 2)]
    for alone, shared in zip(*rows, strict=True):
        for key, value in alone.items():
            assert value == shared[key] or shared[key] == pytest.approx(value, rel=1e-3, abs=1e-5), key
