"""Runs that are exported, and what a user of the export does with it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from helpers.command_line import Run
from helpers.flow_pipelines import SIDE

GUIDANCE = {"SanaSprintPipeline": 4.5, "LatentConsistencyModelPipeline": 2.0}
LORA = "pytorch_lora_weights.safetensors"
UNET = "StableDiffusionPipeline"


def succeeded(result: Any) -> Any:
    assert result.returncode == 0, result.stderr
    return result


def train(sdpo: Run, path: Path, name: str, *extra: str) -> None:
    succeeded(
        sdpo(
            "train",
            "emoji",
            f"model={{path: {path}, height: {SIDE}, width: {SIDE}}}",
            "epochs=1",
            "prompts={train: [cat, dog], unseen: null}",
            "rewards={colorfulness: 1.0}",
            f"sample={{num_steps: 2, prompts_per_epoch: 4, guidance_scale: {GUIDANCE.get(name, 1.0)}}}",
            "train={batch_size: 1, learning_rate: 3.0e-2}",
            "evaluate={every: 0, steps: [2], images_per_prompt: 1, judge: null}",
            "lora={rank: 2, alpha: 4}",
            "algorithm={name: sdpo}",
            *extra,
            "--output-dir",
            "run",
        )
    )


def snippet(folder: Path) -> str:
    card = (folder / "README.md").read_text(encoding="utf-8")
    found = re.search(r"```python\n(.*?)```", card, re.DOTALL)
    assert found, card
    return found[1]


def drawn(folder: Path) -> np.ndarray:
    """Run the card's snippet unchanged, and read the image that it draws."""
    exec(compile(snippet(folder), str(folder), "exec"), {})
    return np.asarray(Image.open("image.png"), int)


def sampled(sdpo: Run) -> np.ndarray:
    """Draw an image with the base and the tuned model, which differ; returns the tuned model's."""
    succeeded(sdpo("sample", "run", "cat", "--steps", "2", "--seed", "0", "--compare", "-o", "both.png"))
    base, tuned = np.split(np.asarray(Image.open("both.png"), int), 2, axis=1)
    assert np.abs(base - tuned).max() > 2
    return tuned
