"""Mistakes and failures around a run: one message, exit code 2, nothing lost, nothing silently different."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from helpers import bad_rewards
from helpers.command_line import Run, failed, succeeded
from helpers.pipelines import load_pipeline
from helpers.run_files import epochs, rows
from helpers.small_run import config
from PIL import Image

from sdpo import Trainer
from sdpo.errors import UserError
from sdpo.run.checkpoint import CheckpointStore


@pytest.fixture
def command(tiny_overrides: list[str]) -> list[str]:
    return ["train", "emoji", *tiny_overrides, "--output-dir", "run"]


# -- settings and options ----------------------------------------------------------------------------------------------


def test_user_code_that_cannot_be_imported_or_built(sdpo: Run, tmp_path: Path, command: list[str]) -> None:
    (tmp_path / "typo.py").write_text("def reward(:\n")
    (tmp_path / "undefined.py").write_text("x = y\n")
    (tmp_path / "lost.py").write_text("class R:\n    def __init__(self): open('no/such/file')\n")
    failed(sdpo(*command, "rewards={typo:reward: 1}"), "typo:reward", "SyntaxError")
    failed(sdpo(*command, "rewards={undefined:reward: 1}"), "NameError")
    failed(sdpo(*command, "rewards={':f': 1}"), "':f'")
    failed(sdpo(*command, "rewards={lost:R: 1}"), "lost:R", "no/such/file")


@pytest.mark.parametrize("setting", ["device=gpu", "device=cuda:99", "scoring.device=gpu", "seed=-1", f"seed={2**63}"])
def test_settings_that_no_machine_has(sdpo: Run, command: list[str], setting: str) -> None:
    failed(sdpo(*command, setting), setting.split("=")[0].split(".")[-1])


def test_other_commands_on_settings_that_no_machine_has(sdpo: Run, tiny_pipeline: Path) -> None:
    failed(sdpo("sample", str(tiny_pipeline), "cat", "--device", "gpu"), "device=gpu")
    failed(sdpo("sample", str(tiny_pipeline), "cat", "--seed", str(2**64)), "--seed")
    failed(sdpo("sample", str(tiny_pipeline), "cat", "--steps", "0"), "--steps")
    failed(sdpo("evaluate", str(tiny_pipeline), "--device", "gpu"), "device=gpu")


def test_a_dry_run_looks_for_what_is_named(sdpo: Run) -> None:
    failed(sdpo("train", "emoji", "--dry-run", "rewards={colorfulnes: 1.0}"), "did you mean 'colorfulness'")
    failed(sdpo("train", "emoji", "--dry-run", "prompts.train=nofile.txt"), "nofile.txt")
    failed(sdpo("train", "emoji", "--dry-run", "model.path=/nope"), "/nope")
    succeeded(sdpo("train", "aesthetic", "--dry-run"))  # a model of the hub is not looked for
    failed(sdpo("train", "emoji", "--dry-run", "evaluate.steps=1,2"), "write [1, 2, 4]")
    failed(sdpo("train", "emoji", "--dry-run", "epochs", "=", "3"), "without spaces around =")


def test_compare_needs_a_run(sdpo: Run, tiny_pipeline: Path) -> None:
    failed(sdpo("sample", str(tiny_pipeline), "cat", "--compare"), "--compare needs the directory of a run")
    failed(sdpo("sample", "./nope", "cat"), "no run and no model at ./nope")


def test_options_reach_the_rewards_that_have_them(sdpo: Run, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8), "red").save(tmp_path / "red.png")
    (tmp_path / "mine.py").write_text(
        "class R:\n    def __init__(self, strength=1.0): self.s = strength\n"
        "    def __call__(self, images, prompts, metadata): return self.s * images[:, 0].mean((1, 2))\n"
    )
    both = ["score", "--reward", "mine:R", "--reward", "colorfulness", "red.png", "--json"]
    assert json.loads(sdpo(*both, "--option", "strength=2").stdout)[0]["mine:R"] == 2
    assert json.loads(sdpo(*both, "--option", "mine:R.strength=3").stdout)[0]["mine:R"] == 3
    failed(sdpo(*both, "--option", "strenth=2"), "strenth", "mine:R has strength")
    failed(sdpo(*both, "--option", "strength"), "path=/models")


def test_an_option_outside_its_choices(sdpo: Run, command: list[str]) -> None:
    options = ["rewards={imagereward: 1}", "reward_options={imagereward: {mode: offical}}"]
    failed(sdpo(*command, *options), "reward_options.imagereward.mode", "official", "offical")
    options = ["rewards={aesthetic: 1}", "reward_options={aesthetic: {resize: pill}}"]
    failed(sdpo(*command, *options), "reward_options.aesthetic.resize")


def test_buffer_that_never_reaches_its_count(sdpo: Run, command: list[str]) -> None:
    failed(sdpo(*command, "advantage={buffer_size: 8, min_count: 16}"), "min_count (16)")


def test_python_users_see_the_same_errors(tiny_pipeline: Path, tmp_path: Path) -> None:
    trainer = Trainer(
        config(None, tmp_path / "run", epochs=1), pipeline=load_pipeline(tiny_pipeline), reward=bad_rewards.nan
    )
    with pytest.raises(UserError, match="'nan' returned nan"):
        trainer.train()


# -- the machine -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["sdpo.run.metrics.MetricsFile.append", "sdpo.evaluation.history.write_evaluation"])
def test_a_full_disk(sdpo: Run, command: list[str], monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(place, full)
        failed(sdpo(*command), "No space left", "rerun the command")
    succeeded(sdpo(*command))


def test_memory_that_runs_out_names_what_to_turn(
    sdpo: Run, command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def out_of_memory(*arguments: object) -> None:
        raise torch.OutOfMemoryError("tried to allocate 3 GiB")

    monkeypatch.setattr("sdpo.loop.policy_update.PolicyUpdate.run", out_of_memory)
    failed(sdpo(*command), "3 GiB", "train.micro_batch", "scoring.offload")


def test_divergence_is_named_and_the_checkpoint_stays(sdpo: Run, tmp_path: Path, command: list[str]) -> None:
    """The only optimizer step of epoch 1 makes weights of 1e30, with which epoch 2 cannot sample."""
    one_step = ["train.batch_size=8", "train.timestep_fraction=0.1", "evaluate.every=0", "epochs=9"]
    result = sdpo(*command, "train.learning_rate=1e30", "train.warmup_steps=0", *one_step)
    failed(result, "epoch 2: ", "is not finite. The checkpoint of epoch 1 is intact. Lower train.learning_rate")
    (row,) = rows(tmp_path / "run")
    assert row["epoch"] == 1 and all(value is None or math.isfinite(value) for value in row.values())
    weights = CheckpointStore(tmp_path / "run" / "checkpoints").load(1).weights
    assert max(w.abs().max() for w in weights.values()) > 1e20, "the step was made"


# -- what a run counts -------------------------------------------------------------------------------------------------


def test_the_plan_final_claims_nothing_about_the_first_step(sdpo: Run, tmp_path: Path, command: list[str]) -> None:
    succeeded(sdpo(*command, "algorithm.reward_plan=final"))
    found = rows(tmp_path / "run")
    assert [row["reward/first_step"] for row in found] == [None, None]
    assert [(row["reward_queries"], row["images"]) for row in found] == [(16, 16), (32, 32)]


def test_evaluations_of_the_base_model_are_counted(sdpo: Run, tmp_path: Path, command: list[str]) -> None:
    succeeded(sdpo(*command, "train.kl_weight=0.1"))
    # Three steps are sampled; two are updated, each once with the policy and once with the base model.
    assert [row["denoiser_evaluations"] for row in rows(tmp_path / "run")] == [(3 + 2 + 2) * 16, (3 + 2 + 2) * 32]


# -- a directory that has a run already --------------------------------------------------------------------------------


def test_what_a_repeated_command_says(sdpo: Run, command: list[str]) -> None:
    assert "trained epochs 1 to 2" in sdpo(*command).stdout
    assert "finished before (2 epochs)" in sdpo(*command).stdout


def test_the_length_of_a_decaying_run_cannot_be_changed(sdpo: Run, command: list[str]) -> None:
    decaying = [*command, "train.lr_schedule=cosine"]
    succeeded(sdpo(*decaying))
    failed(sdpo(*decaying, "epochs=4"), "epochs: 2 → 4")


def test_a_run_with_a_constant_rate_can_be_extended(sdpo: Run, tmp_path: Path, command: list[str]) -> None:
    constant = [*command, "train.lr_schedule=constant"]
    succeeded(sdpo(*constant))
    succeeded(sdpo(*constant, "epochs=3"))
    assert epochs(tmp_path / "run") == [1, 2, 3]
