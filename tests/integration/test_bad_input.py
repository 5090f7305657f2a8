"""Mistakes of users: exit code 2, one message that says what and how to fix it, no traceback."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from helpers import bad_rewards
from helpers.command_line import Run, failed


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["emojy"], ["emojy", "did you mean 'emoji'"]),
        (["emoji", "trian.lr=1"], ["trian", "train"]),
        (["emoji", "train.learning_rat=1"], ["'learning_rate'"]),
        (["emoji", "algorithm.clip_rang=1"], ["clip_range"]),
        (["emoji", "epochs=many"], ["epochs", "many"]),
        (["emoji", "algorithm.discount=2"], ["discount"]),
        (["emoji", "prompts.train=nowhere.txt"], ["nowhere.txt", "simple_animals"]),
        (["emoji", "rewards={emoji_scor: 1.0}"], ["emoji_scor", "emoji_score"]),
        (["emoji", "sample.num_steps=0"], ["num_steps"]),
        (["emoji", "sample.num_steps=1001"], ["1001", "1000"]),
        (["emoji", "evaluate.steps=[4, 2000]"], ["2000"]),
        (["emoji", "sample.eta=0"], ["eta", "log-prob"]),
        (["emoji", "train.batch_size=7"], ["batch_size", "9"]),
        (["emoji", "model.path=/nowhere/at/all"], ["/nowhere/at/all"]),
        (["emoji", "lora={rank: 2, targets: [to_z]}"], ["to_z"]),
        (["emoji", "trackers=[foo]"], ["foo", "tensorboard"]),
        (["aesthetic"], ["stabilityai/sd-turbo", "model.path=/path/to/sd-turbo"]),
    ],
)
def test_train_refuses(sdpo: Run, arguments: list[str], words: list[str]) -> None:
    failed(sdpo("train", *arguments), *words)


@pytest.mark.parametrize(
    "command",
    [["train", "--dry-run"], ["compare", "--dry-run", "--algorithms", "sdpo"], ["doctor"]],
    ids=lambda c: c[0],
)
def test_an_only_step_without_density_is_refused_before_the_model_is_loaded(sdpo: Run, command: list[str]) -> None:
    words = ["model.scheduler={name: LCMScheduler}", "sample.num_steps=1", "algorithm.credit=step"]
    failed(sdpo(*command, "emoji", *words), "only step is deterministic", "sample.num_steps=2")


def test_empty_prompt_file_and_output_that_is_a_file(sdpo: Run, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n# only a comment\n")
    failed(sdpo("train", "emoji", "prompts.train=empty.txt"), "empty.txt", "empty")
    (tmp_path / "broken.jsonl").write_text('{"prompt": "cat"}\n{"promt": "dog"}\n')
    failed(sdpo("train", "emoji", "prompts.train=broken.jsonl"), "broken.jsonl:2")
    (tmp_path / "file").write_text("")
    failed(sdpo("train", "emoji", "--output-dir", "file"), "file", "directory")


@pytest.mark.parametrize(
    ("reward", "words"),
    [
        ("short", ["expected one score an image"]),
        ("nan", ["returned nan for prompt 'cat'"]),
        ("raises", ["the judge is asleep"]),
        ("words", ["numbers"]),
        ("complex_numbers", ["complex numbers have no order"]),
        ("columns", ["shape (1, 1) for 1 images"]),
    ],
)
def test_a_failing_reward_is_an_error_never_a_zero(
    sdpo: Run, tiny_overrides: list[str], reward: str, words: list[str]
) -> None:
    name = bad_rewards.path_to(reward)
    overrides = [*tiny_overrides, f"rewards={{'{name}': 1.0}}", "prompts.train=[cat]"]
    failed(sdpo("train", "emoji", *overrides), repr(name), *words)


def test_a_reward_that_does_not_exist(sdpo: Run, tiny_overrides: list[str]) -> None:
    overrides = [*tiny_overrides, "rewards={'helpers.bad_rewards:missing': 1.0}"]
    failed(sdpo("train", "emoji", *overrides), "'helpers.bad_rewards:missing' cannot be imported")


def test_other_commands_refuse(sdpo: Run, tmp_path: Path) -> None:
    failed(sdpo("report", "nowhere"), "nowhere")
    failed(sdpo("evaluate", "emoji", "--steps", "one"), "--steps")
    failed(sdpo("sample", "nowhere/at/all", "cat"), "nowhere/at/all")
    (tmp_path / "model").mkdir()
    failed(sdpo("sample", "model", "cat"), "model_index.json")
    (tmp_path / "model" / "model_index.json").write_text('{"_class_name": "KandinskyPipeline"}')
    failed(sdpo("sample", "model", "cat"), "KandinskyPipeline", "StableDiffusionPipeline")


def test_the_real_process_exits_with_2_and_no_traceback(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sdpo", "train", "emojy"]
    failed(subprocess.run(command, cwd=tmp_path, capture_output=True, text=True), "did you mean 'emoji'")
