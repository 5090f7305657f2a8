"""What only a GPU can show; skipped without one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from sdpo import Config, Trainer
from sdpo.loop import rollout as sampler
from sdpo.loop.policy_update import PolicyUpdate

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")]


def config(model: Path, run: Path, **values: Any) -> Config:
    base: dict[str, Any] = dict(
        epochs=2, output_dir=str(run), model={"path": str(model)}, lora={"rank": 2, "targets": None},
        prompts={"train": ["cat", "dog"], "unseen": None}, rewards={"colorfulness": 1.0},
        sample={"num_steps": 3, "prompts_per_epoch": 8}, train={"batch_size": 8},
        evaluate={"every": 0, "steps": [1], "images_per_prompt": 1, "judge": None},
    )  # fmt: skip
    return Config.load("emoji", **base | values)


def test_the_step_loops_do_not_wait_for_the_device(
    tiny_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = Trainer(config(tiny_pipeline, tmp_path / "run"))
    walk, accumulate = sampler._walk, PolicyUpdate._accumulate

    def strict(function: Any) -> Any:
        torch.cuda.set_sync_debug_mode("error")
        try:
            return function()
        finally:
            torch.cuda.set_sync_debug_mode("default")

    def watched_walk(*arguments: Any) -> Any:
        steps = walk(*arguments)
        for _ in range(3):
            yield strict(lambda: next(steps))

    trainer.train_epoch()  # kernels are chosen and compiled
    monkeypatch.setattr(sampler, "_walk", watched_walk)
    monkeypatch.setattr(PolicyUpdate, "_accumulate", lambda *arguments: strict(lambda: accumulate(*arguments)))
    trainer.train_epoch()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_run_in_every_precision(tiny_pipeline: Path, tmp_path: Path, dtype: str) -> None:
    trainer = Trainer(config(tiny_pipeline, tmp_path / "run", model={"path": str(tiny_pipeline), "dtype": dtype}))
    row = trainer.train_epoch()
    assert row["train/on_policy_log_ratio"] <= (1e-5 if dtype == "float32" else 1e-2)
    assert ("train/skipped_steps" in row) == (dtype == "float16")
    trainer.train()
    assert (tmp_path / "run" / "lora").is_dir()


def test_a_compiled_network_trains(tiny_pipeline: Path, tmp_path: Path) -> None:
    model = {"path": str(tiny_pipeline), "compile": True, "tf32": True}
    Trainer(config(tiny_pipeline, tmp_path / "run", model=model, epochs=1)).train()
