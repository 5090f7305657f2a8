"""The fixture of the tests of exports: a run to export."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.exported_runs import TrainRun
from helpers.family_runs import GUIDANCE
from helpers.flow_pipelines import SIDE
from helpers.trained_runs import TrainedRuns


@pytest.fixture
def train(trained_runs: TrainedRuns, tmp_path: Path) -> TrainRun:
    """A function that puts a finished run of one epoch into the directory `run`."""

    def train(path: Path | str, name: str, *extra: str) -> Path:
        return trained_runs.copy(
            tmp_path / "run",
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
        )

    return train
