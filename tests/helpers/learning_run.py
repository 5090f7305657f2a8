"""The directory of a run that learns: everything that a report shows is in it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from helpers.written_runs import write_evaluation, write_rows

STEPS = (1, 2, 4, 8)
PROMPTS = ["a cat", "<script>alert(1)</script>", "a dog & a fox riding together on a very long red bicycle", "a ☃ bear"]


def write_learning_run(
    path: Path,
    *,
    epochs: int = 10,
    images: int = 8,
    tile: int = 32,
    tiles: int = 6,
    lora: bool = True,
    unseen: bool = True,
    algorithm: str = "sdpo",
) -> Path:
    """Write a run of two rewards and a judge, evaluated every five epochs, whose scores rise by exact amounts.

    Args:
        path: the directory.
        epochs: the number of epochs, all of which have ended.
        images: the number of images of an evaluation.
        tile: the side of a picture in pixels.
        tiles: the number of pictures at each number of steps.
        lora: whether a LoRA is trained, and not all weights.
        unseen: whether evaluations have prompts that are not trained on.
        algorithm: the name of the algorithm.
    """
    path.mkdir(parents=True)
    config: dict[str, Any] = {
        "seed": 42,
        "epochs": epochs,
        "model": {"path": "someone/tiny-diffusion"},
        "lora": {"rank": 4, "alpha": 4} if lora else None,
        "prompts": {"train": PROMPTS},
        "rewards": {"emoji": 1.0, "jpeg": 0.5},
        "algorithm": {"name": algorithm, "discount": 0.99},
        "sample": {"num_steps": 8},
        "evaluate": {"every": 5, "steps": list(STEPS)},
    }
    (path / "config.yaml").write_text(yaml.safe_dump(config, allow_unicode=True), encoding="utf-8")
    (path / "environment.json").write_text(json.dumps({"python": "3.12", "packages": {"torch": "2.9<b>"}}))
    rng = np.random.default_rng(0)
    rows = []
    for epoch in range(1, epochs + 1):
        rise = 1 - math.exp(-epoch / 15)
        rows.append(
            {
                "epoch": epoch,
                "images": 256 * epoch,
                "reward_queries": 768 * epoch,
                "denoiser_evaluations": 4096 * epoch,
                "seconds": 41.5 * epoch,
                "train/loss": 3e-5 * (1 - rise) + 2e-6 * rng.normal(),
                "train/clip_fraction": 0.1 * rise + 0.02 * rng.random(),
                "train/grad_norm": 0.4 + 0.1 * rng.random(),
                "train/learning_rate": 1e-4,
                "train/on_policy_log_ratio": 0.0,
                "reward/first_step": 0.2 + 0.3 * rise + 0.01 * rng.normal(),
                "reward/last_step": 0.3 + 0.4 * rise + 0.01 * rng.normal(),
                "reward/emoji": 0.3 + 0.3 * rise,
                "reward/jpeg": -40 + 8 * rise,
            }
        )
    write_rows(path, rows)
    for epoch in range(0, epochs + 1, 5):
        _write_evaluation(path, epoch, images, tile, tiles, unseen)
    if lora:
        (path / "lora").mkdir()
    return path


def _write_evaluation(path: Path, epoch: int, images: int, tile: int, tiles: int, unseen: bool) -> None:
    rng = np.random.default_rng(1)  # the same for every epoch: the same prompts and seeds
    rise = 1 - math.exp(-epoch / 15)
    prompts = [PROMPTS[i % len(PROMPTS)] for i in range(images)]

    def scores(scale: float) -> dict[str, dict[str, list[float]]]:
        found: dict[str, dict[str, list[float]]] = {"emoji": {}, "jpeg": {}, "emoji_judge": {}}
        for k, steps in enumerate(STEPS):
            base = 0.25 + 0.1 * k + 0.1 * rng.random(images)
            spread = rng.random(images)
            emoji = base + scale * rise * (0.3 - 0.04 * k) * (0.5 + spread)
            found["emoji"][str(steps)] = emoji.tolist()
            found["jpeg"][str(steps)] = (-40 + 2 * k + 9 * base + rise * (spread - 0.5)).tolist()
            found["emoji_judge"][str(steps)] = (emoji > 0.5).astype(float).tolist()
        return found

    record: dict[str, Any] = {
        "epoch": epoch,
        "images": 256 * epoch,
        "reward_queries": 768 * epoch,
        "denoiser_evaluations": 4096 * epoch,
        "seconds": 41.5 * epoch,
        "prompts": prompts,
        "seeds": list(range(images)),
        "judge": "emoji_judge",
        "scores": scores(1.0),
    }
    if unseen:
        record["unseen"] = {"prompts": prompts[:4], "seeds": [0, 1, 2, 3]}
        record["unseen"]["scores"] = {n: {s: v[:4] for s, v in by.items()} for n, by in scores(0.7).items()}
    write_evaluation(path, record, {steps: _strip(tile, tiles, k, rise) for k, steps in enumerate(STEPS)})


def _strip(tile: int, tiles: int, k: int, rise: float) -> np.ndarray:
    """Discs that get sharper with the step count and with training."""
    axis = np.linspace(-1, 1, tile)
    radius = np.hypot(*np.meshgrid(axis, axis))
    sharpness = 3 + 4 * k + 12 * rise
    disc = 1 / (1 + np.exp(sharpness * (radius - 0.6)))
    hues = np.array([[0.9, 0.6, 0.1], [0.2, 0.5, 0.8], [0.7, 0.3, 0.5], [0.3, 0.7, 0.4]])
    parts = [1 - disc[:, :, None] * (1 - hues[i % 4]) for i in range(tiles)]
    return (np.concatenate(parts, axis=1) * 255).astype(np.uint8)
