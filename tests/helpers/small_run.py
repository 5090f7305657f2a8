"""A run of seconds that has everything in it that a resume must bring back; its parts run in forked processes too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from helpers.run_files import LORA, contents, epochs, rows_without_time
from sdpo import Config
from sdpo.run.checkpoint import CheckpointStore


def config(path: Path | str | None, run: Path, **values: Any) -> Config:
    """Two rewards (running moments), a normaliser with buffers, an average of the weights, a warm-up, evaluations.

    Args:
        path: the path of the model; None leaves it to a pipeline that is given in Python.
        run: the run's directory.
        values: sections whose keys are merged into those of the small run; the rewards, and an algorithm with its name,
            are replaced as a whole.
    """
    base: dict[str, Any] = dict(
        epochs=3,
        output_dir=str(run),
        model={} if path is None else {"path": str(path)},
        lora={"rank": 2, "alpha": 2},
        prompts={"train": ["cat", "dog", "fox"], "unseen": None},
        rewards={"colorfulness": 1.0, "jpeg_compressibility": 0.5},
        algorithm={"name": "sdpo", "credit": "step", "clip_range": 1e-4},
        advantage={"normalizer": "stepwise", "buffer_size": 8, "min_count": 4},
        sample={"num_steps": 2, "prompts_per_epoch": 8},
        train={"batch_size": 4, "learning_rate": 1e-3, "lr_schedule": "constant", "warmup_steps": 2, "ema_decay": 0.9},
        evaluate={"every": 4, "steps": [1], "images_per_prompt": 1, "judge": None},
    )
    for key, value in values.items():
        whole = not isinstance(value, dict) or key == "rewards" or "name" in value
        base[key] = value if whole else {**base.get(key, {}), **value}
    return Config.parse(base)  # no preset: those are tuned now and then


def arguments(path: Path, run: Path, **values: Any) -> list[str]:
    """The command that trains the small run; its configuration is a file beside the run's directory."""
    file = run.with_suffix(".yaml")
    file.write_text(config(path, run, **values).to_yaml())
    return ["train", str(file), "--output-dir", str(run)]


def assert_same_end(one: Path, other: Path) -> None:
    """Weights, optimizer, average, statistics, metrics and evaluations agree to the last bit."""
    assert rows_without_time(one) == rows_without_time(other)
    assert epochs(one) == list(range(1, len(epochs(one)) + 1))
    stores = [CheckpointStore(run / "checkpoints") for run in (one, other)]
    assert stores[0].epochs() == stores[1].epochs() and stores[0].epochs()
    for epoch in stores[0].epochs():
        left, right = (store.load(epoch) for store in stores)
        for checkpoint in (left, right):
            del checkpoint.state["counters"]["seconds"], checkpoint.state["evaluation_counters"]["seconds"]
        assert same(vars(left), vars(right)), epoch
    assert result(one) == result(other)
    assert contents(one / "evaluation", "*.png") == contents(other / "evaluation", "*.png")
    for path in sorted((one / "evaluation").glob("*.json")):
        records = [json.loads((run / "evaluation" / path.name).read_text()) for run in (one, other)]
        assert all(record.pop("seconds") is not None for record in records) and records[0] == records[1]
    assert (other / "report.html").read_text().rstrip().endswith("</html>")
    leftovers = [p for run in (one, other) for p in run.rglob("*") if p.suffix in (".tmp", ".old")]
    assert not leftovers


def result(run: Path) -> tuple[Any, bytes]:
    """The LoRA: its file's header, whose entries safetensors writes in any order, and the bytes of its tensors."""
    content = (run / "lora" / LORA).read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    return json.loads(content[8:end]), content[end:]


def same(one: Any, other: Any) -> bool:
    """Equality to the last bit of nested containers of tensors and numbers."""
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)
