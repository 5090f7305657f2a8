"""Tests that need a GPU; skipped without one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.run_files import lora_weights, rows
from helpers.small_run import config
from helpers.step_loops import watch_step_loops

from sdpo import Trainer

SETTINGS: dict[str, Any] = dict(
    epochs=2, rewards={"colorfulness": 1.0}, sample={"num_steps": 3}, train={"batch_size": 8}, evaluate={"every": 0}
)

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")]


def test_the_step_loops_do_not_wait_for_the_device(
    tiny_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = Trainer(config(tiny_pipeline, tmp_path / "run", **SETTINGS))

    @contextlib.contextmanager
    def strict() -> Iterator[None]:
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")

    trainer.train_epoch()  # kernels are chosen and compiled
    entered = watch_step_loops(monkeypatch, strict)
    trainer.train_epoch()
    assert set(entered) == {"sampling", "update"}
    with pytest.raises(RuntimeError, match="synchroniz"), strict():
        torch.ones(1, device="cuda").item()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_run_in_every_precision(tiny_pipeline: Path, tmp_path: Path, dtype: str) -> None:
    Trainer(config(tiny_pipeline, tmp_path / "run", **SETTINGS, model={"dtype": dtype})).train()
    found = rows(tmp_path / "run")
    assert [row["epoch"] for row in found] == [1, 2]
    for row in found:
        # In half precision sampling and update get equal batches, and with them the same rounding.
        assert row["train/on_policy_log_ratio"] <= (1e-4 if dtype == "float32" else 0)
        assert ("train/skipped_steps" in row) == (dtype == "float16")
    assert all(w.isfinite().all() for w in lora_weights(tmp_path / "run").values())


def test_a_compiled_network_makes_the_run_of_an_uncompiled_one(tiny_pipeline: Path, tmp_path: Path) -> None:
    fixed = {"sample": {"num_steps": 3, "micro_batch": 8}, "train": {"batch_size": 8, "micro_batch": 8}}
    for name, model in (("compiled", {"compile": True, "tf32": True}), ("plain", {})):
        Trainer(config(tiny_pipeline, tmp_path / name, **{**SETTINGS, **fixed}, model=model)).train()
    compiled, plain = rows(tmp_path / "compiled"), rows(tmp_path / "plain")
    assert [row["epoch"] for row in compiled] == [1, 2]
    for ours, theirs in zip(compiled, plain, strict=True):
        assert ours["train/on_policy_log_ratio"] <= 1e-2 and ours["train/grad_norm"] > 0
        assert ours["reward/last_step"] == pytest.approx(theirs["reward/last_step"], rel=0.05)
    weights, others = lora_weights(tmp_path / "compiled"), lora_weights(tmp_path / "plain")
    assert weights.keys() == others.keys(), "the names of a compiled network are those of the network"
    assert all(w.isfinite().all() for w in weights.values())
    assert any(w.any() for name, w in weights.items() if "lora_B" in name), "something is learned"


@pytest.mark.parametrize("algorithm", [{"name": "srg"}, {"name": "draft", "through": 3}], ids=str)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_reward_gradients_in_every_precision(
    tiny_pipeline: Path, tmp_path: Path, dtype: str, algorithm: dict[str, Any]
) -> None:
    settings = {**SETTINGS, "algorithm": algorithm, "model": {"dtype": dtype}, "train": {"kl_weight": 0.1}}
    Trainer(config(tiny_pipeline, tmp_path / "run", **settings)).train()
    found = rows(tmp_path / "run")
    assert all(row["train/grad_norm"] > 0 for row in found)
    weights = lora_weights(tmp_path / "run")
    assert all(w.isfinite().all() for w in weights.values())
    assert any(w.any() for name, w in weights.items() if "lora_B" in name), "something is learned"
