"""Whole runs of each family through the real command line: train, resume, sample, evaluate, load elsewhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.command_line import Run, failed, succeeded
from helpers.family_runs import SD_LCM, UNSEEN, Pipelines, image_of, loaded, on_disk, overrides
from helpers.flow_pipelines import FLOW_PIPELINES, SIDE
from helpers.pipelines import PIPELINES
from helpers.run_files import evaluation, lora_weights, rows


def same_scores(sdpo: Run, run: Path, own: dict[str, Any], *extra: str) -> None:
    """Evaluate a run's result with `sdpo evaluate`, and compare the scores with the trainer's own evaluation."""
    succeeded(sdpo("evaluate", str(run), "--steps", "1,4", "--images-per-prompt", "1", *extra))
    found = json.loads((run / "evaluation.json").read_text())
    assert found["prompts"] == own["prompts"]
    for steps in ("1", "4"):
        assert found["after"]["colorfulness"][steps] == pytest.approx(own["scores"]["colorfulness"][steps], rel=1e-3)


@pytest.mark.parametrize("name", [*PIPELINES, SD_LCM])
def test_a_lora_run_end_to_end(sdpo: Run, tmp_path: Path, pipeline_path: Pipelines, name: str) -> None:
    command = ["train", "emoji", *overrides(pipeline_path, name)]
    succeeded(sdpo(*command, "--output-dir", "run"))
    found = rows(tmp_path / "run")
    assert [row["epoch"] for row in found] == [1, 2]
    assert max(row["train/on_policy_log_ratio"] for row in found) <= 1e-5
    assert min(row["train/grad_norm"] for row in found) > 0

    # A run that stops after one epoch and is resumed with freed text encoders ends with the same weights.
    succeeded(sdpo(*command, "epochs=1", "--output-dir", "again"))
    succeeded(sdpo(*command, "model.text_encoders=free", "--output-dir", "again"))
    weights = [lora_weights(tmp_path / run) for run in ("run", "again")]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    assert any(weights[0][key].any() for key in weights[0] if "lora_B" in key)

    # The pipeline's own loader loads the LoRA, and the pipeline draws the image of `sdpo sample`.
    succeeded(sdpo("sample", "run", "cat", "--steps", "2", "--seed", "3", "--compare", "-o", "both.png"))
    backbone = loaded(pipeline_path(name.split()[0]), name)
    base = image_of(backbone, name)
    backbone.pipeline.load_lora_weights(str(tmp_path / "run" / "lora"))
    expected = np.concatenate([base, image_of(backbone, name)], 1)
    assert np.abs(on_disk(tmp_path / "both.png") - expected).max() <= 2
    assert (expected[:, :SIDE] != expected[:, SIDE:]).any()

    # The weights in training, and the saved ones, have equal scores on prompts that were not trained on.
    (tmp_path / "unseen.txt").write_text("\n".join(UNSEEN))
    last = evaluation(tmp_path / "again", 2)["unseen"]
    same_scores(sdpo, tmp_path / "again", last, "--prompts", "unseen.txt")


@pytest.mark.parametrize("name", ["StableDiffusionPipeline", "LatentConsistencyModelPipeline",
                                  "StableDiffusion3Pipeline"])  # fmt: skip
def test_full_fine_tuning(sdpo: Run, tmp_path: Path, pipeline_path: Pipelines, name: str) -> None:
    extra = ["lora=null", "train.kl_weight=0.1", "train.gradient_checkpointing=true", "model.text_encoders=cpu"]
    command = ["train", "emoji", *overrides(pipeline_path, name), *extra, "train.learning_rate=1.0e-3"]
    if name in FLOW_PIPELINES:
        command.append("sample.noise_form=flow_grpo")
    succeeded(sdpo(*command, "epochs=1", "--output-dir", "run"))
    (row,) = rows(tmp_path / "run")
    assert row["train/on_policy_log_ratio"] <= 1e-5 and row["train/kl_to_base"] > 0
    succeeded(sdpo("sample", "run", "cat", "--steps", "2", "--seed", "3", "--compare", "-o", "both.png"))
    images = [image_of(loaded(path, name), name) for path in (pipeline_path(name), tmp_path / "run" / "model")]
    assert np.abs(on_disk(tmp_path / "both.png") - np.concatenate(images, 1)).max() <= 2
    assert (images[0] != images[1]).any()
    same_scores(sdpo, tmp_path / "run", evaluation(tmp_path / "run", 1))


# -- a deterministic last step ---------------------------------------------------------------------------------------

# 8 trajectories of 3 steps: sampling evaluates all steps, the update the first two. D3PO and REBEL evaluate those two
# once more without gradient: for the base model, or before the first gradient.
EVALUATIONS = {"sdpo": 24 + 16, "d3po": 24 + 2 * 16, "rebel": 24 + 2 * 16}


@pytest.mark.parametrize("algorithm", EVALUATIONS)
@pytest.mark.parametrize("name", ["LatentConsistencyModelPipeline", "FluxPipeline"])
def test_the_update_skips_the_deterministic_last_step(
    sdpo: Run, tmp_path: Path, pipeline_path: Pipelines, name: str, algorithm: str
) -> None:
    few = ["epochs=1", f"algorithm={algorithm}", "evaluate.steps=[2]", "prompts.unseen=null"]
    succeeded(sdpo("train", "emoji", *overrides(pipeline_path, name), *few, "--output-dir", "run"))
    (row,) = rows(tmp_path / "run")
    assert row["denoiser_evaluations"] == EVALUATIONS[algorithm]
    assert row["train/on_policy_log_ratio"] <= 1e-5 and row["train/grad_norm"] > 0


@pytest.mark.parametrize("name", ["LatentConsistencyModelPipeline", "FluxPipeline", SD_LCM])
def test_a_single_deterministic_step_is_refused(sdpo: Run, pipeline_path: Pipelines, name: str) -> None:
    command = ["train", *overrides(pipeline_path, name), "--output-dir", "run"]
    failed(sdpo(*command, "sample.num_steps=1"), "sample.num_steps=2 or more")


# -- settings that a family does not support -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["SanaSprintPipeline", "StableDiffusionPipeline"])
def test_an_unsupported_noise_form_is_refused(sdpo: Run, pipeline_path: Pipelines, name: str) -> None:
    command = ["train", *overrides(pipeline_path, name), "--output-dir", "run"]
    failed(sdpo(*command, "sample.noise_form=flow_grpo"), "sample.noise_form=flow_grpo is for flow models")
