"""Whole runs through the real command line and the Python interface, on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.command_line import Run, failed, succeeded
from helpers.pipelines import load_pipeline
from helpers.run_files import epochs, evaluation, rows, rows_without_time
from helpers.small_run import config, same
from PIL import Image
from safetensors.torch import load_file

from sdpo import Trainer

NAMED = [
    "epoch", "images", "reward_queries", "denoiser_evaluations", "seconds", "train/loss", "train/clip_fraction",
    "train/grad_norm", "train/on_policy_log_ratio", "reward/first_step", "reward/last_step", "eval/colorfulness/1",
]  # fmt: skip
# Rounding of the log-ratio depends on the batch size of a call: these runs sample and update in calls of one size.
EQUAL_CALLS: dict[str, Any] = dict(
    sample={"num_steps": 3, "prompts_per_epoch": 16, "micro_batch": 16},
    train={"batch_size": 16, "micro_batch": 16},
)


def test_a_lora_run_end_to_end(sdpo: Run, tmp_path: Path, tiny_pipeline: Path, tiny_overrides: list[str]) -> None:
    command = ["train", "emoji", *tiny_overrides, "--output-dir", "run"]
    assert "at most 48 reward queries" in succeeded(sdpo(*command, "--dry-run")).stdout
    assert not (tmp_path / "run").exists()
    succeeded(sdpo(*command))
    run = tmp_path / "run"
    for name in (
        "config.yaml",
        "metrics.jsonl",
        "checkpoints/2",
        "lora",
        "report.html",
        "curves.png",
        "samples.png",
        "environment.json",
    ):
        assert (run / name).exists(), name
    found = rows(run)
    assert [row["epoch"] for row in found] == [1, 2]
    assert [row["images"] for row in found] == [16, 32]
    for row in found:
        assert not set(NAMED) - set(row)
        assert row["images"] < row["reward_queries"] <= 3 * row["images"]
        assert row["denoiser_evaluations"] == 5 * row["images"]
        assert row["train/on_policy_log_ratio"] <= 1e-5

    # The weights load with diffusers' own loader and give the image of `sdpo sample`.
    succeeded(sdpo("sample", "run", "cat", "--steps", "4", "--seed", "3", "-o", "tuned.png"))
    succeeded(sdpo("sample", "run", "cat", "--seed", "3", "--compare", "-o", "both.png"))
    pipeline = load_pipeline(tiny_pipeline)

    def drawn() -> np.ndarray:
        settings = dict(num_inference_steps=4, guidance_scale=1.0, generator=torch.Generator().manual_seed(3))
        return np.asarray(pipeline("cat", **settings).images[0], int)

    base = drawn()
    pipeline.load_lora_weights(str(run / "lora"))
    tuned = drawn()
    assert np.abs(np.asarray(Image.open(tmp_path / "tuned.png"), int) - tuned).max() <= 2
    both = np.asarray(Image.open(tmp_path / "both.png"), int)
    assert np.abs(both - np.concatenate([base, tuned], 1)).max() <= 2 and (base != tuned).any()

    succeeded(sdpo("evaluate", "run", "--steps", "1,2", "--images-per-prompt", "2"))
    result = json.loads((run / "evaluation.json").read_text())
    assert len(result["after"]["colorfulness"]["1"]) == 6 and "gain" in result["summary"]["colorfulness"]["2"]
    # The trainer's own weights, and those that were saved and loaded again, score alike.
    last = evaluation(run, 2)["scores"]["colorfulness"]["1"]
    assert result["after"]["colorfulness"]["1"][:3] == pytest.approx(last, rel=1e-3)
    assert "report.html" in succeeded(sdpo("report", "run")).stdout

    # Another configuration in the same directory is refused, and nothing is lost.
    failed(sdpo(*command, "train.learning_rate=0.5"), "learning_rate")
    assert rows(run) == found


def test_a_full_fine_tuning_run_can_be_sampled(sdpo: Run, tmp_path: Path, tiny_overrides: list[str]) -> None:
    extra = ["epochs=1", "lora=null", "train.ema_decay=0.9", "train.kl_weight=0.1"]
    succeeded(sdpo("train", "emoji", *tiny_overrides, *extra, "--output-dir", "run"))
    assert (tmp_path / "run" / "model" / "model_index.json").exists()
    assert "train/kl_to_base" in rows(tmp_path / "run")[0]
    succeeded(sdpo("sample", "run", "dog", "-o", "dog.png"))
    assert Image.open(tmp_path / "dog.png").size == (16, 16)


def test_the_small_commands(sdpo: Run) -> None:
    assert "emoji_score" in succeeded(sdpo("rewards")).stdout
    assert "aesthetic" in succeeded(sdpo("presets")).stdout
    assert "optimizer steps" in succeeded(sdpo("train", "pickscore", "--dry-run")).stdout


def test_the_micro_batch_changes_only_speed(tiny_pipeline: Path, tmp_path: Path) -> None:
    losses = {}
    for size in (1, 4, 16):
        sample, train = ({**EQUAL_CALLS[section], "micro_batch": size} for section in ("sample", "train"))
        Trainer(config(tiny_pipeline, tmp_path / str(size), epochs=2, sample=sample, train=train)).train()
        found = rows(tmp_path / str(size))
        assert len(found) == 2 and max(row["train/on_policy_log_ratio"] for row in found) <= 1e-5
        losses[size] = [row["train/loss"] for row in found]
    for size in (1, 4):
        assert losses[size] == pytest.approx(losses[16], rel=1e-4)


def test_log_ratio_is_exactly_zero_at_equal_batch_sizes(tiny_pipeline: Path, tmp_path: Path) -> None:
    for scale in (1.0, 2.0):
        settings = {**EQUAL_CALLS, "sample": {**EQUAL_CALLS["sample"], "guidance_scale": scale}}
        trainer = Trainer(config(tiny_pipeline, tmp_path / str(scale), **settings))
        assert trainer.train_epoch()["train/on_policy_log_ratio"] == 0.0


def test_a_run_that_was_stopped_resumes_to_the_same_weights(
    tiny_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Trainer(config(tiny_pipeline, tmp_path / "whole")).train()
    stopped = Trainer(config(tiny_pipeline, tmp_path / "parts"))
    scoring = stopped.parts.mix.start

    def interrupt(*arguments: Any) -> Any:
        if stopped.session.epoch == 1:
            raise KeyboardInterrupt
        return scoring(*arguments)

    monkeypatch.setattr(stopped.parts.mix, "start", interrupt)
    with pytest.raises(KeyboardInterrupt):
        stopped.train()
    # A row without its checkpoint, as a killed process leaves it.
    with (tmp_path / "parts" / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 2, "half": ')
    Trainer(config(tiny_pipeline, tmp_path / "parts")).train()
    for name in (
        "lora/pytorch_lora_weights.safetensors",
        "checkpoints/3/weights.safetensors",
        "checkpoints/3/ema.safetensors",
    ):
        assert same(*(load_file(tmp_path / run / name) for run in ("whole", "parts"))), name
    assert rows_without_time(tmp_path / "whole") == rows_without_time(tmp_path / "parts")
    assert epochs(tmp_path / "parts") == [1, 2, 3]


def test_metadata_reaches_the_reward(tiny_pipeline: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "cat", "wish": 1}\n{"prompt": "dog", "wish": 2}\n')
    pairs: set[tuple[str, int]] = set()

    def wish(images: torch.Tensor, texts: list[str], metadata: list[dict[str, Any]]) -> list[float]:
        pairs.update((t, m["wish"]) for t, m in zip(texts, metadata, strict=True))
        return [float(m["wish"]) for m in metadata]

    Trainer(config(tiny_pipeline, tmp_path / "run", epochs=1, prompts={"train": str(prompts)}), reward=wish).train()
    assert pairs == {("cat", 1), ("dog", 2)}


def test_several_rewards_are_logged_apart(tiny_pipeline: Path, tmp_path: Path) -> None:
    row = Trainer(config(tiny_pipeline, tmp_path / "run")).train_epoch()
    assert row["reward/colorfulness"] > 0 > row["reward/jpeg_compressibility"]
