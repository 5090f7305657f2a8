"""Monitors and stopping rules in real runs on a tiny model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from helpers.command_line import Run, failed, succeeded
from helpers.run_files import epochs, evaluation, lora_weights, rows, rows_without_time
from safetensors.torch import load_file

from sdpo.evaluation.record import Evaluation


def test_a_rule_ends_the_run_and_the_best_checkpoint_is_its_result(
    sdpo: Run, tmp_path: Path, tiny_overrides: list[str]
) -> None:
    command = [
        "train", "emoji", *tiny_overrides, "epochs=6", "evaluate.images_per_prompt=2",
        "evaluate.images_per_prompt_between=1", "evaluate.held_out=[jpeg_compressibility]", "prompts.unseen=[cow]",
    ]  # fmt: skip
    succeeded(sdpo(*command, "epochs=3", "--output-dir", "free"))
    free = rows(tmp_path / "free")
    drift = [row["monitor/kl_to_base/2"] for row in free]
    measured = {f"monitor/{name}/{steps}" for name in ("diversity", "edge_density", "entropy") for steps in (1, 2)}
    assert len(free) == 3 and not any(measured - set(row) for row in free)
    assert "eval/jpeg_compressibility/1" in free[0] and drift[0] < drift[1] < drift[2]
    base = evaluation(tmp_path / "free", 0)
    assert base["monitored"] == 2 and base["monitors"]["kl_to_base"]["2"] < 1e-6 * drift[0]

    # The bound is passed between epochs 1 and 2; the rule must hold twice.
    rule = f"stop_when=[{{metric: monitor/kl_to_base/2, above: {(drift[0] + drift[1]) / 2}, patience: 2}}]"
    ended = succeeded(sdpo(*command, rule, "--output-dir", "run"))
    assert "Stopped by stop_when after epoch 3: monitor/kl_to_base/2 is" in ended.stdout
    assert "The result is that of epoch 1" in ended.stdout and "trained epochs 1 to 3" in ended.stdout
    run = tmp_path / "run"
    assert rows_without_time(run)[:2] == rows_without_time(tmp_path / "free")[:2] and len(rows(run)) == 3
    assert json.loads((run / "stopped.json").read_text())["result_epoch"] == 1
    best = load_file(run / "checkpoints" / "1" / "weights.safetensors")
    saved = lora_weights(run)
    assert len(saved) == len(best)
    assert all(torch.equal(saved["unet." + name.replace(".default", "")], w) for name, w in best.items())
    page = " ".join((run / "report.html").read_text().split())
    assert "Stopped by stop_when after epoch 3" in page and "3 of 6, stopped by a rule" in page
    assert "After: epoch 1. Both have the same prompts" in page and "Drift from the base model" in page

    # Where `checkpoint.every` leaves that epoch out, it is saved all the same.
    succeeded(sdpo(*command, rule, "checkpoint.every=4", "--output-dir", "seldom"))
    assert (tmp_path / "seldom" / "stopped.json").read_bytes() == (run / "stopped.json").read_bytes()
    assert {p.name for p in (tmp_path / "seldom" / "checkpoints").iterdir()} == {"1", "3"}

    # Interrupted after any epoch, the run ends in the same way.
    shutil.copytree(run, tmp_path / "resumed")
    shutil.rmtree(tmp_path / "resumed" / "checkpoints" / "3")
    again = sdpo(*command, rule, "--output-dir", "resumed")
    assert "Stopped by stop_when after epoch 3" in again.stdout and "trained epochs 3 to 3" in again.stdout
    assert rows_without_time(tmp_path / "resumed") == rows_without_time(run)
    assert (tmp_path / "resumed" / "stopped.json").read_bytes() == (run / "stopped.json").read_bytes()
    assert "finished before (3 epochs)" in sdpo(*command, rule, "--output-dir", "resumed").stdout

    # Without the rule the run resumes from the last epoch, not from the best.
    assert "trained epochs 4 to 4" in sdpo(*command, "epochs=4", "--output-dir", "resumed").stdout
    assert not (tmp_path / "resumed" / "stopped.json").exists()


def test_an_epoch_that_lacks_what_a_rule_is_about_is_kept(
    sdpo: Run, tmp_path: Path, tiny_overrides: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics = Evaluation.metrics

    def without(self: Evaluation) -> dict[str, float]:
        return {name: value for name, value in metrics(self).items() if not name.startswith("monitor/diversity")}

    command = ["train", "emoji", *tiny_overrides, "--output-dir", "run"]
    succeeded(sdpo(*command, "epochs=1"))
    monkeypatch.setattr(Evaluation, "metrics", without)
    failed(sdpo(*command, "stop_when=[{metric: monitor/diversity/2, below: 0.0}]"), "no monitor/diversity/2")
    assert epochs(tmp_path / "run") == [1, 2]
    assert (tmp_path / "run" / "checkpoints" / "2").is_dir()


def test_a_rule_that_names_no_metric_is_refused_before_anything_starts(sdpo: Run, tmp_path: Path) -> None:
    rule = "stop_when=[{metric: monitor/divrsity/4, below: 0.5}]"
    failed(sdpo("train", "emoji", rule, "--output-dir", "run"), "monitor/diversity/4")
    assert not (tmp_path / "run").exists()
