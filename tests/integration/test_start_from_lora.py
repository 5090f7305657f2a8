"""Training that starts from the LoRA of another run, and what that LoRA holds."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from helpers.command_line import Run, failed, succeeded
from helpers.run_files import LORA, evaluation, lora_weights, rows, rows_without_time
from helpers.trained_runs import TrainedRuns
from safetensors import safe_open
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


@pytest.mark.parametrize("reference", ["base", "start"])
def test_the_reference_after_a_starting_lora_is_the_base_or_the_start(
    sdpo: Run, tmp_path: Path, tiny_overrides: list[str], run: Path, reference: str
) -> None:
    settings = ["train", "emoji", *tiny_overrides, "epochs=1", "train.kl_weight=1", f"train.reference={reference}"]
    succeeded(sdpo(*settings, "train.learning_rate=1e-12", f"lora.path={run / 'lora'}", "--output-dir", "more"))
    (row,) = rows(tmp_path / "more")
    start = evaluation(tmp_path / "more", 0)["monitors"]["kl_to_base"]["2"]
    assert start > 1e-4, "the starting LoRA is not the base model, to which the monitor always refers"
    if reference == "start":
        assert row["train/kl_to_base"] < 1e-9
    else:
        assert row["train/kl_to_base"] > 1e-5
    assert row["monitor/kl_to_base/2"] == pytest.approx(start, rel=1e-3)


def test_the_starting_lora_of_a_resumed_run_must_be_the_same(
    sdpo: Run, tmp_path: Path, tiny_overrides: list[str], run: Path
) -> None:
    lora = tmp_path / "start"
    shutil.copytree(run / "lora", lora)
    settings = ["train", "emoji", *tiny_overrides, "train.kl_weight=1", "train.lr_schedule=constant"]
    settings += ["train.reference=start", f"lora.path={lora}"]
    succeeded(sdpo(*settings, "epochs=1", "--output-dir", "more"))
    succeeded(sdpo(*settings, "epochs=2", "--output-dir", "more"))
    succeeded(sdpo(*settings, "epochs=2", "--output-dir", "whole"))
    # The evaluations of a run that ended earlier cost more: its end was one, in full.
    resumed, whole = (
        [{name: value for name, value in row.items() if not name.startswith("evaluation/")} for row in rows]
        for rows in (rows_without_time(tmp_path / "more"), rows_without_time(tmp_path / "whole"))
    )
    assert resumed == whole
    with safe_open(lora / LORA, "pt") as file:
        metadata = file.metadata()
    save_file({name: 2 * weight for name, weight in lora_weights(run).items()}, lora / LORA, metadata=metadata)
    failed(sdpo(*settings, "epochs=3", "--output-dir", "more"), "holds other weights than at the start of this run")
