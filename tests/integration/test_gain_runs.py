"""Runs with gains over a fitted baseline: killed and resumed to the last bit; one process and two make the same run."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import forked_processes as forked
from helpers import small_run
from helpers.launched_processes import ended, launch
from helpers.run_files import rows_without_time

from sdpo import Trainer
from sdpo.loop import returns
from sdpo.method.algorithms import Algorithm

SETTINGS: dict[str, Any] = dict(
    algorithm={
        "name": "sdpo",
        "discount": 1.0,
        "reward_plan": "all",
        "credit": {"name": "gain", "gae_lambda": 0.5, "baseline": "fitted"},
    },
    sample={"num_steps": 3, "prompts_per_epoch": 8},
)


def train(model: Path, run: Path, fatal_epoch: int | None = None) -> None:
    """Train to the end, or into an epoch in which the process is killed once its returns are known."""
    trainer = Trainer(small_run.config(model, run, **SETTINGS))
    compute = Algorithm.returns

    def watched(self: Algorithm[Any], dense: torch.Tensor) -> torch.Tensor:
        found = compute(self, dense)
        if trainer.session.epoch + 1 == fatal_epoch:
            os.kill(os.getpid(), signal.SIGKILL)
        return found

    Algorithm.returns = watched  # type: ignore[method-assign]  # this process ends with the run
    trainer.train()


def train_and_record(model: Path, run: Path) -> None:
    """Train, and write this process's weights and returns beside the run's directory."""
    trainer, seen = Trainer(small_run.config(model, run, **SETTINGS)), []
    compute = returns.over_all_groups

    def watched(*arguments: Any) -> torch.Tensor:
        seen.append(compute(*arguments))
        return seen[-1]

    returns.over_all_groups = watched
    trainer.train()
    weights = {n: p.detach().clone() for n, p in trainer.parts.backbone.trainable_parameters().items()}
    torch.save((weights, seen), f"{run}.rank{os.environ['RANK']}.pt")


def test_a_killed_run_ends_where_an_undisturbed_one_ends(tiny_pipeline: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    for run, fatal_epochs in {"whole": [None], "killed": [2, 3, None]}.items():
        for fatal_epoch in fatal_epochs:
            process = forked.start(train, tiny_pipeline, tmp_path / run, fatal_epoch, log=log)
            process.join(120)
            assert process.exitcode == (0 if fatal_epoch is None else -signal.SIGKILL), log.read_text()
    small_run.assert_same_end(tmp_path / "whole", tmp_path / "killed")


def test_two_processes_make_the_run_of_one(tiny_pipeline: Path, tmp_path: Path) -> None:
    found = {}
    for count in (1, 2):
        run, logs = tmp_path / str(count), tmp_path / f"{count}.logs"
        codes, texts = ended(launch(count, train_and_record, tiny_pipeline, run, logs=logs), logs)
        assert codes == [0] * count, texts
        found[count] = [torch.load(f"{run}.rank{rank}.pt") for rank in range(count)]
    (weights, gains), ((first, own), (second, others)) = found[1][0], found[2]
    for key, weight in weights.items():
        torch.testing.assert_close(first[key], weight, atol=1e-5, rtol=0)
        assert torch.equal(first[key], second[key])
    assert len(gains) == 3 and gains[0].std() > 0.01
    rows = [rows_without_time(tmp_path / str(count)) for count in (1, 2)]
    for alone, shared in zip(*rows, strict=True):
        for key, value in alone.items():
            assert value == shared[key] or shared[key] == pytest.approx(value, rel=1e-3, abs=1e-5), key
    # Each process gets the returns of its own groups; together they are those of one process, in another order.
    for epoch, whole in enumerate(gains):
        together = torch.cat([own[epoch], others[epoch]])
        torch.testing.assert_close(together.flatten().sort()[0], whole.flatten().sort()[0], atol=1e-4, rtol=1e-4)
