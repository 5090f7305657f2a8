"""Run directories with scores that are written by hand, for tests of `sdpo compare`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

PROMPTS = ["a cat", "<script>alert(1)</script>", "a dog & a fox", "a bear"]


def write_run(
    path: Path,
    curves: Mapping[int, Sequence[float]],
    *,
    seed: int = 42,
    algorithm: Mapping[str, Any] | str = "sdpo",
    reward: str = "aesthetic",
    epochs: int | None = None,
    samples: int = 100,
    tiles: bool = False,
    unseen: float | None = None,
    **config: Any,
) -> Path:
    """A directory as `sdpo train` leaves it, of a run that was evaluated at every epoch.

    Args:
        path: of the directory.
        curves: step count → mean score at epoch 0, 1, …; the first and the last evaluation have 4 images and a last
            image that lifts their mean by 0.1, those between have 2 images.
        seed: of the run.
        algorithm: its name, or its section.
        reward: its name.
        epochs: planned; None is those that `curves` has.
        samples: drawn in an epoch.
        tiles: also write pictures.
        unseen: the scores that the last evaluation has on prompts not trained on, 0 in the first.
        config: more of the configuration.
    """
    last = len(next(iter(curves.values()))) - 1
    path.mkdir(parents=True)
    section = {"name": algorithm} if isinstance(algorithm, str) else dict(algorithm)
    settings = {
        "seed": seed,
        "epochs": last if epochs is None else epochs,
        "model": {"path": "someone/tiny"},
        "lora": {"rank": 4, "alpha": 4},
        "rewards": {reward: 1.0},
        "algorithm": section,
        "train": {"learning_rate": 1e-4},
        **config,
    }
    (path / "config.yaml").write_text(yaml.safe_dump(settings))
    rows = []
    (path / "evaluation").mkdir()
    for epoch in range(last + 1):
        ends = epoch in (0, last)
        count = 4 if ends else 2
        costs = {
            "images": samples * epoch,
            "reward_queries": 3 * samples * epoch - seed % 2 * epoch,
            "denoiser_evaluations": 10 * samples * epoch,
            "seconds": 7.5 * epoch,
        }
        scores = {
            str(steps): [v[epoch] - 0.01, v[epoch] + 0.01, *([v[epoch], v[epoch] + 0.4] if ends else [])]
            for steps, v in curves.items()
        }
        judged = {steps: [float(v > 0.5) for v in values] for steps, values in scores.items()}
        record = {
            "epoch": epoch,
            **costs,
            "judge": "judge",
            "prompts": PROMPTS[:count],
            "seeds": list(range(count)),
            "scores": {reward: scores, "judge": judged},
        }
        if ends and unseen is not None:
            scores = {str(steps): [unseen if epoch else 0.0] for steps in curves}
            record["unseen"] = {"prompts": ["a moon"], "seeds": [0], "scores": {reward: scores}}
        (path / "evaluation" / f"epoch_{epoch:04d}.json").write_text(json.dumps(record))
        if epoch:
            rows.append({"epoch": epoch, **costs})
        if tiles and ends:
            folder = path / "evaluation" / f"epoch_{epoch:04d}"
            folder.mkdir()
            for steps in curves:
                pixels = np.random.default_rng(steps + epoch).integers(0, 255, (16, 16 * count, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"steps_{steps}.png")
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
