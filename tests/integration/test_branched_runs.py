"""Runs that branch at one step: their costs to the last evaluation, and killed, resumed and shared by two processes."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import forked_processes as forked
from helpers import small_run
from helpers.launched_processes import ended, launch
from helpers.run_files import rows_without_time

from sdpo import Config, Trainer
from sdpo.errors import UserError
from sdpo.estimate.cost import describe_cost
from sdpo.estimate.preflight import check_references
from sdpo.loop.branched_rollout import BranchedRollout

BRANCHES, GROUPS, STEPS = 3, 8, 4
ALGORITHM: dict[str, Any] = {
    "name": "sdpo",
    "branches": BRANCHES,
    "discount": 1.0,
    "reward_plan": "all",
    "credit": {"name": "gain", "gae_lambda": 0.5},
}
RANDOM: dict[str, Any] = {
    "num_steps": STEPS,
    "prompts_per_epoch": GROUPS,
    "branch_at": "random",
    "branch_weights": [1.0, 2.0, 1.0],
}
SETTINGS: dict[str, Any] = {"algorithm": ALGORITHM, "sample": RANDOM}


def train(model: Path, run: Path, fatal_epoch: int | None = None, **settings: Any) -> None:
    """Train to the end, or into an epoch in which the process is killed once its groups are sampled."""
    trainer = Trainer(small_run.config(model, run, **{**SETTINGS, **settings}))
    update = trainer.update

    def watched(epoch: int, *arguments: Any) -> Any:
        found = update(epoch, *arguments)
        if epoch == fatal_epoch:
            os.kill(os.getpid(), signal.SIGKILL)
        return found

    trainer.update = watched  # type: ignore[method-assign]
    trainer.train()


def train_and_record(model: Path, run: Path) -> None:
    """Train, and write this process's weights and the steps of its groups beside the run's directory."""
    trainer, seen = Trainer(small_run.config(model, run, **SETTINGS)), {}
    collect = trainer.collect

    def watched(epoch: int) -> Any:
        trajectories, scores = collect(epoch)
        assert trajectories.branched is not None
        seen[epoch] = dict(zip(trajectories.sample_index.tolist(), trajectories.branched.step.tolist(), strict=True))
        return trajectories, scores

    trainer.collect = watched  # type: ignore[method-assign]
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
    (weights, steps), ((first, own), (second, others)) = found[1][0], found[2]
    for key, weight in weights.items():
        torch.testing.assert_close(first[key], weight, atol=1e-5, rtol=0)
        assert torch.equal(first[key], second[key])
    for epoch, whole in steps.items():
        assert own[epoch] | others[epoch] == whole and len(set(whole.values())) > 1
    rows = [rows_without_time(tmp_path / str(count)) for count in (1, 2)]
    for alone, shared in zip(*rows, strict=True):
        for key, value in alone.items():
            assert value == shared[key] or shared[key] == pytest.approx(value, rel=1e-3, abs=1e-5), key


@pytest.mark.parametrize(
    ("sample", "algorithm"),
    [
        ({"branch_at": 0}, {}),
        ({"branch_at": 2}, {"name": "grpo"}),
        ({"branch_at": 1, "after_branch": "none"}, {"name": "ddpo"}),
        ({"branch_at": 1, "lookahead": 1}, {"name": "d3po"}),
        ({"branch_at": "random"}, {}),
        ({"branch_at": "random", "lookahead": 1}, {}),
        ({"branch_at": "random", "after_branch": "independent", "lookahead": 2}, {}),
    ],
)
def test_the_counters_and_the_dry_run_hold_the_costs_by_hand(
    tiny_pipeline: Path, tmp_path: Path, sample: dict[str, Any], algorithm: dict[str, Any]
) -> None:
    sample = {"num_steps": STEPS, "prompts_per_epoch": GROUPS, **sample}
    settings: dict[str, Any] = {"algorithm": {**ALGORITHM, **algorithm}, "sample": sample}
    config = small_run.config(tiny_pipeline, tmp_path / "run", epochs=2, **settings)
    trainer = Trainer(config)
    drawn: list[int] = []
    collect = trainer.collect

    def watched(epoch: int) -> Any:
        trajectories, scores = collect(epoch)
        assert trajectories.branched is not None
        drawn.extend(trajectories.branched.step.tolist())
        return trajectories, scores

    trainer.collect = watched  # type: ignore[method-assign]
    trainer.train()
    lookahead = sample.get("lookahead") or STEPS
    ends = [min(STEPS - 1, step + lookahead) for step in drawn]
    sampled = sum(i + 1 + BRANCHES * (e - i) for i, e in zip(drawn, ends, strict=True))
    updated = len(drawn) * (2 if algorithm.get("name") == "d3po" else 1)  # and the reference model
    scored = sum(1 + BRANCHES * (e - i) for i, e in zip(drawn, ends, strict=True))
    first, last = rows_without_time(tmp_path / "run")
    assert last["denoiser_evaluations"] == sampled + updated
    assert last["reward_queries"] == scored
    assert last["images"] == len(drawn) * BRANCHES
    assert f"{sampled + updated} network evaluations, {2 * 2} optimizer steps" in describe_cost(config)
    on_average = (config.sample.branch_at == "random") == ("on average" in describe_cost(config))
    assert on_average and first["train/on_policy_log_ratio"] == last["train/on_policy_log_ratio"] == 0
    assert (last["reward/first_step"] is not None) == (set(drawn) == {0} and config.sample.branch_at == 0)
    reaches_end = config.sample.lookahead is None
    assert (last["reward/last_step"] is not None) == reaches_end == ("reward/colorfulness" in last)


def test_without_branching_nothing_of_it_is_made(
    tiny_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run with `branch_at=null` samples, scores and updates by the path of whole trajectories alone."""

    def refuse(*_: Any) -> None:
        raise AssertionError("a run that does not branch makes no branched rollout")

    monkeypatch.setattr(BranchedRollout, "__init__", refuse)
    monkeypatch.setattr("sdpo.method.branching.Branching.draw", refuse)
    monkeypatch.setattr("sdpo.method.advantages.StepwiseNormalizer.update_at", refuse)
    trainer = Trainer(small_run.config(tiny_pipeline, tmp_path / "run"))
    assert trainer.parts.branched is None
    trainer.train()
    (checkpoint, *_) = sorted((tmp_path / "run" / "checkpoints").iterdir())
    assert checkpoint.is_dir() and "at_step" not in trainer.parts.normalizer.state_dict()


@pytest.mark.parametrize("at_once", [True, False])
def test_a_model_without_deterministic_steps_says_so(tiny_pipeline: Path, tmp_path: Path, at_once: bool) -> None:
    """A consistency model draws fresh noise at every step: a dry run knows that from the scheduler's name."""
    sample = {"num_steps": STEPS, "prompts_per_epoch": GROUPS, "branch_at": 1, "after_branch": "none"}
    model = {"path": str(tiny_pipeline), "scheduler": {"name": "LCMScheduler"}}
    config = small_run.config(None, tmp_path / "run", model=model, algorithm=ALGORITHM, sample=sample)
    with pytest.raises(UserError, match=re.escape("set sample.after_branch=common")):
        check_references(config) if at_once else Trainer(config)


def test_a_hybrid_branches_in_its_policy_update(tiny_pipeline: Path, tmp_path: Path) -> None:
    hybrid = {"name": "hybrid", "policy": ALGORITHM, "gradient": "srg"}
    config = Config.parse(
        {
            **small_run.config(tiny_pipeline, tmp_path / "run", epochs=1).model_dump(),
            "algorithm": hybrid,
            "sample": {"num_steps": STEPS, "prompts_per_epoch": GROUPS, "branch_at": 1},
        }
    )
    Trainer(config).train()
    (row,) = rows_without_time(tmp_path / "run")
    assert row["train/on_policy_log_ratio"] == 0 and row["train/gradient_loss"] is not None
