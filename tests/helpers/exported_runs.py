"""Runs that are exported, and what a user of the export does with it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from helpers.command_line import Run, succeeded

UNET = "StableDiffusionPipeline"
AVERAGED = ("train.ema_decay=0.9", "epochs=2", "evaluate.every=1")
TrainRun = Callable[..., Path]


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
