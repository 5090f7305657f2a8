"""Whole runs through the real command line and the Python interface, on a tiny model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.command_line import Run
from PIL import Image
from safetensors.torch import load_file

from sdpo import Config, Trainer

NAMED = [
    "epoch", "images", "reward_queries", "denoiser_evaluations", "seconds", "train/loss", "train/clip_fraction",
    "train/grad_norm", "train/on_policy_log_ratio", "reward/first_step", "reward/last_step", "eval/colorfulness/1",
]  # fmt: skip
LORA = "lora={rank: 2, alpha: 4}"


def rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def succeeded(result: Any) -> Any:
    assert result.returncode == 0, result.stderr
    return result


def test_a_lora_run_end_to_end(sdpo: Run, tmp_path: Path, tiny_pipeline: Path, tiny_overrides: list[str]) -> None:
    command = ["train", "emoji", *tiny_overrides, LORA, "--output-dir", "run"]
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
    assert all(name in row for row in found for name in NAMED)
    assert all(row["reward_queries"] <= 3 * row["images"] for row in found)
    assert all(row["denoiser_evaluations"] == 5 * row["images"] for row in found)
    assert all(row["train/on_policy_log_ratio"] <= 1e-5 for row in found)

    # The weights load with diffusers' own loader and give the image of `sdpo sample`.
    succeeded(sdpo("sample", "run", "cat", "--steps", "4", "--seed", "3", "-o", "tuned.png"))
    succeeded(sdpo("sample", "run", "cat", "--seed", "3", "--compare", "-o", "both.png"))
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(tiny_pipeline, safety_checker=None, dtype=torch.float32)
    base = pipeline(
        "cat", num_inference_steps=4, guidance_scale=1.0, generator=torch.Generator().manual_seed(3)
    ).images[0]
    pipeline.load_lora_weights(str(run / "lora"))
    image = pipeline(
        "cat", num_inference_steps=4, guidance_scale=1.0, generator=torch.Generator().manual_seed(3)
    ).images[0]
    tuned = np.asarray(Image.open(tmp_path / "tuned.png"), int)
    assert np.abs(tuned - np.asarray(image, int)).max() <= 2
    both = np.asarray(Image.open(tmp_path / "both.png"), int)
    assert np.abs(both - np.concatenate([np.asarray(base, int), np.asarray(image, int)], 1)).max() <= 2

    succeeded(sdpo("evaluate", "run", "--steps", "1,2", "--images-per-prompt", "2"))
    result = json.loads((run / "evaluation.json").read_text())
    assert len(result["after"]["colorfulness"]["1"]) == 6 and "gain" in result["summary"]["colorfulness"]["2"]
    # The trainer's own weights, and those that were saved and loaded again, score alike.
    last = json.loads((run / "evaluation" / "epoch_0002.json").read_text())["scores"]["colorfulness"]["1"]
    assert result["after"]["colorfulness"]["1"][:3] == pytest.approx(last, rel=1e-3)
    assert "report.html" in succeeded(sdpo("report", "run")).stdout

    # Another configuration in the same directory is refused, and nothing is lost.
    other = sdpo(*command, "train.learning_rate=0.5")
    assert other.returncode == 2 and "learning_rate" in other.stderr
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


def config(tiny_pipeline: Path, run: Path, **values: Any) -> Config:
    base: dict[str, Any] = dict(
        epochs=3, output_dir=str(run), model={"path": str(tiny_pipeline)}, lora={"rank": 2},
        prompts={"train": ["cat", "dog", "fox"], "unseen": None}, rewards={"colorfulness": 1.0},
        sample={"num_steps": 3, "prompts_per_epoch": 16, "micro_batch": 16},
        train={"batch_size": 16, "micro_batch": 16, "learning_rate": 1e-3, "warmup_steps": 2, "ema_decay": 0.9},
        evaluate={"every": 0, "steps": [1], "images_per_prompt": 1, "judge": None},
    )  # fmt: skip
    for key, value in values.items():
        base[key] = {**base[key], **value} if isinstance(value, dict) else value
    return Config.load("emoji", **base)


def test_the_micro_batch_changes_only_speed(tiny_pipeline: Path, tmp_path: Path) -> None:
    losses = {}
    for size in (1, 4, 16):
        settings = config(
            tiny_pipeline, tmp_path / str(size), sample={"micro_batch": size}, train={"micro_batch": size}
        )
        Trainer(settings).train()
        found = rows(tmp_path / str(size))
        assert all(row["train/on_policy_log_ratio"] <= 1e-5 for row in found)
        losses[size] = [row["train/loss"] for row in found]
    for size in (1, 4):
        assert losses[size] == pytest.approx(losses[16], rel=1e-4)


def test_log_ratio_is_exactly_zero_at_equal_batch_sizes(tiny_pipeline: Path, tmp_path: Path) -> None:
    trainer = Trainer(config(tiny_pipeline, tmp_path / "run"))
    assert trainer.train_epoch()["train/on_policy_log_ratio"] == 0.0
    guided = Trainer(config(tiny_pipeline, tmp_path / "guided", sample={"guidance_scale": 2.0}))
    assert guided.train_epoch()["train/on_policy_log_ratio"] == 0.0


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
        whole, parts = load_file(tmp_path / "whole" / name), load_file(tmp_path / "parts" / name)
        assert whole.keys() == parts.keys() and all(torch.equal(whole[k], parts[k]) for k in whole), name
    timeless = [
        [{k: v for k, v in row.items() if k != "seconds"} for row in rows(tmp_path / d)] for d in ("whole", "parts")
    ]
    assert timeless[0] == timeless[1]


def test_python_interface_with_own_pipeline_reward_and_prompts(tiny_pipeline: Path, tmp_path: Path) -> None:
    from diffusers import StableDiffusionPipeline

    seen: list[str] = []

    def brightness(images: torch.Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> torch.Tensor:
        seen.extend(prompts)
        return images.mean((1, 2, 3))

    pipeline = StableDiffusionPipeline.from_pretrained(tiny_pipeline, safety_checker=None, dtype=torch.float32)
    settings = config(tiny_pipeline, tmp_path / "run", epochs=1)
    report = Trainer(settings, pipeline=pipeline, reward=brightness, prompts=["a moon", "a sun"]).train()
    assert report.exists() and set(seen) == {"a moon", "a sun"}
    assert "eval/brightness/1" in rows(tmp_path / "run")[0]


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
    names = {"colorfulness": 1.0, "jpeg_compressibility": 0.5}
    settings = config(tiny_pipeline, tmp_path / "run", epochs=1).model_copy(update={"rewards": names})
    row = Trainer(settings).train_epoch()
    assert row["reward/colorfulness"] > 0 > row["reward/jpeg_compressibility"]


def test_two_processes_make_the_run_of_one(tiny_pipeline: Path, tmp_path: Path) -> None:
    """Prompts, noise and batches come from the global index, gradients are averaged, rank 0 alone writes."""
    Trainer(config(tiny_pipeline, tmp_path / "one")).train()
    settings = config(tiny_pipeline, tmp_path / "two")
    (tmp_path / "two.yaml").write_text(settings.to_yaml())
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    succeeded(
        subprocess.run([*launch, "-m", "sdpo", "train", tmp_path / "two.yaml"], capture_output=True, text=True),
    )
    assert json.loads((tmp_path / "two" / "environment.json").read_text())["processes"] == 2
    one, two = (load_file(tmp_path / d / "lora" / "pytorch_lora_weights.safetensors") for d in ("one", "two"))
    assert all(torch.allclose(one[k], two[k], atol=1e-5) for k in one)
    assert max(one[k].abs().max() for k in one if "lora_B" in k) > 1e-4, "nothing was learned"
    for alone, shared in zip(rows(tmp_path / "one"), rows(tmp_path / "two"), strict=True):
        for name in ("images", "reward_queries", "denoiser_evaluations"):
            assert alone[name] == shared[name]
        for name in ("train/loss", "train/grad_norm", "reward/last_step", "reward/first_step"):
            assert alone[name] == pytest.approx(shared[name], rel=1e-4), name
