"""Training that starts from the LoRA of another run, and what that LoRA holds."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers.command_line import Run, failed, succeeded
from helpers.run_files import LORA, evaluation, lora_weights
from helpers.trained_runs import TrainedRuns
from safetensors.torch import load_file, save_file


@pytest.fixture
def run(trained_runs: TrainedRuns, tmp_path: Path, tiny_overrides: list[str]) -> Path:
    """A finished run whose result is an average of its weights."""
    return trained_runs.copy(tmp_path / "run", "emoji", *tiny_overrides, "train.ema_decay=0.5")


def test_training_starts_from_the_lora_of_a_run(
    sdpo: Run, tmp_path: Path, tiny_overrides: list[str], run: Path
) -> None:
    settings = ["train", "emoji", *tiny_overrides, "epochs=1", "train.learning_rate=1e-12"]
    succeeded(sdpo(*settings, f"lora.path={run / 'lora'}", "--output-dir", "more"))
    before, after = lora_weights(run), lora_weights(tmp_path / "more")
    assert before.keys() == after.keys()
    assert all(torch.allclose(before[k], after[k], atol=1e-6) for k in before)
    assert max(v.abs().max() for k, v in before.items() if "lora_B" in k) > 1e-4
    # It draws what the other run's end drew: the scale is the same too.
    end, start = (e["scores"]["colorfulness"]["1"] for e in (evaluation(run, 2), evaluation(tmp_path / "more", 0)))
    assert start == pytest.approx(end, rel=1e-4)


def test_a_lora_that_does_not_fit(sdpo: Run, tmp_path: Path, tiny_overrides: list[str], run: Path) -> None:
    base = ["train", "emoji", *tiny_overrides, "--output-dir", "more"]
    failed(sdpo(*base, f"lora={{rank: 2, alpha: 2, path: {run / 'lora'}}}"), "lora.alpha=4")
    failed(sdpo(*base, f"lora={{rank: 4, alpha: 4, path: {run / 'lora'}}}"), "lora.rank=2")
    failed(sdpo(*base, "lora.path=nowhere"), "nowhere")
    other = tmp_path / "other"
    other.mkdir()
    save_file({"text_encoder.x.lora_A.weight": torch.ones(2, 2)}, other / LORA)
    failed(sdpo(*base, f"lora.path={other}"), str(other))
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    torch.save(lora_weights(run), pickled / "pytorch_lora_weights.bin")
    failed(sdpo(*base, f"lora.path={pickled}"), str(pickled))


def test_the_average_is_what_is_evaluated_and_saved(run: Path) -> None:
    saved = lora_weights(run)
    average, weights = (load_file(run / "checkpoints" / "2" / f"{name}.safetensors") for name in ("ema", "weights"))
    key = next(k for k in average if "lora_B" in k and not torch.equal(average[k], weights[k]))
    found = saved["unet." + key.replace(".default", "")]
    assert torch.equal(found, average[key]) and not torch.equal(found, weights[key])
