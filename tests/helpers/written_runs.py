"""Run directories as `sdpo train` leaves them, with scores that are written by hand."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

PROMPTS = ["a cat", "<script>alert(1)</script>", "a dog & a fox", "a bear"]


# -- the files of a run ------------------------------------------------------------------------------------------------


def write_rows(run: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write the rows of a run's metrics."""
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_evaluation(run: Path, record: Mapping[str, Any], strips: Mapping[int, np.ndarray]) -> None:
    """Write an evaluation.

    Args:
        run: the run's directory.
        record: its JSON.
        strips: by number of steps, its images beside each other, uint8 [H, W, 3].
    """
    folder = run / "evaluation" / f"epoch_{record['epoch']:04d}"
    folder.parent.mkdir(exist_ok=True)
    folder.with_suffix(".json").write_text(json.dumps(record))
    for steps, pixels in strips.items():
        folder.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(folder / f"steps_{steps}.png")


def change_evaluation(run: Path, evaluated: int, **values: Any) -> None:
    """Set values in the JSON of the evaluation after an epoch; None removes the key."""
    file = run / "evaluation" / f"epoch_{evaluated:04d}.json"
    record = json.loads(file.read_text()) | values
    file.write_text(json.dumps({key: value for key, value in record.items() if value is not None}))


def use_prompt_everywhere(run: Path, prompt: str) -> None:
    """Replace the prompts of all evaluations by one."""
    for file in (run / "evaluation").glob("*.json"):
        record = json.loads(file.read_text())
        file.write_text(json.dumps(record | {"prompts": [prompt] * len(record["prompts"])}))


# -- a run of given scores ---------------------------------------------------------------------------------------------


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
        strips = {
            steps: np.random.default_rng(steps + epoch).integers(0, 255, (16, 16 * count, 3), dtype=np.uint8)
            for steps in (curves if tiles and ends else ())
        }
        write_evaluation(path, record, strips)
        if epoch:
            rows.append({"epoch": epoch, **costs})
    write_rows(path, rows)
    return path
