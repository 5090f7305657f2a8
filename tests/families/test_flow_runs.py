"""Whole runs of each flow family through the real command line: train, resume, sample, evaluate, load elsewhere."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Run
from diffusers import DiffusionPipeline
from flow_pipelines import FLOW_PIPELINES, SIDE
from PIL import Image
from safetensors.torch import load_file

from sdpo.backbones import wrap_pipeline

GUIDANCE = {"SanaSprintPipeline": 4.5}
SIZE = (SIDE, SIDE)


def succeeded(result: Any) -> Any:
    assert result.returncode == 0, result.stderr
    return result


def overrides(path: Path, name: str) -> list[str]:
    return [
        f"model={{path: {path}, height: {SIDE}, width: {SIDE}}}",
        "epochs=2",
        "prompts={train: [cat, dog, a fox], unseen: null}",
        "rewards={colorfulness: 1.0}",
        f"sample={{num_steps: 3, prompts_per_epoch: 4, eta: 0.7, guidance_scale: {GUIDANCE.get(name, 1.0)}}}",
        "train={batch_size: 2, learning_rate: 1.0e-2}",
        "evaluate={every: 0, steps: [1, 2], images_per_prompt: 1, judge: null}",
        "lora={rank: 2, alpha: 4}",
        "algorithm={name: sdpo}",
    ]


def rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", FLOW_PIPELINES)
def test_a_lora_run_end_to_end(sdpo: Run, tmp_path: Path, pipeline_path: Callable[[str], Path], name: str) -> None:
    path = pipeline_path(name)
    command = ["train", "emoji", *overrides(path, name)]
    succeeded(sdpo(*command, "--output-dir", "run"))
    found = rows(tmp_path / "run")
    assert [row["epoch"] for row in found] == [1, 2]
    assert all(row["train/on_policy_log_ratio"] <= 1e-5 and row["train/grad_norm"] > 0 for row in found)

    # Stopped after an epoch and resumed, it arrives at the same weights.
    succeeded(sdpo(*command, "epochs=1", "--output-dir", "again"))
    succeeded(sdpo(*command, "--output-dir", "again"))
    weights = [load_file(tmp_path / run / "lora" / "pytorch_lora_weights.safetensors") for run in ("run", "again")]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    assert any(weights[0][key].any() for key in weights[0] if "lora_B" in key)

    # The LoRA loads by the pipeline's own loader and gives the image of `sdpo sample`.
    succeeded(sdpo("sample", "run", "cat", "--steps", "2", "--seed", "3", "--compare", "-o", "both.png"))
    backbone = wrap_pipeline(DiffusionPipeline.from_pretrained(path, dtype=torch.float32), size=SIZE)
    (base,) = backbone.generate(["cat"], 2, [3], GUIDANCE.get(name, 1.0))
    backbone.pipeline.load_lora_weights(str(tmp_path / "run" / "lora"))
    (tuned,) = backbone.generate(["cat"], 2, [3], GUIDANCE.get(name, 1.0))
    expected = np.concatenate([np.asarray(base, int), np.asarray(tuned, int)], 1)
    assert np.abs(np.asarray(Image.open(tmp_path / "both.png"), int) - expected).max() <= 2
    assert (expected[:, :SIDE] != expected[:, SIDE:]).any()

    # The trainer's own weights, and those that were saved and loaded again, score alike.
    succeeded(sdpo("evaluate", "run", "--steps", "1,2", "--images-per-prompt", "1"))
    after = json.loads((tmp_path / "run" / "evaluation.json").read_text())["after"]["colorfulness"]
    last = json.loads((tmp_path / "run" / "evaluation" / "epoch_0002.json").read_text())["scores"]["colorfulness"]
    assert after["1"] == pytest.approx(last["1"], rel=1e-3) and after["2"] == pytest.approx(last["2"], rel=1e-3)


def test_full_fine_tuning_of_stable_diffusion_3(
    sdpo: Run, tmp_path: Path, pipeline_path: Callable[[str], Path]
) -> None:
    name = "StableDiffusion3Pipeline"
    extra = ["lora=null", "epochs=1", "train.kl_weight=0.1", "train.gradient_checkpointing=true"]
    succeeded(sdpo("train", "emoji", *overrides(pipeline_path(name), name), *extra, "--output-dir", "run"))
    assert rows(tmp_path / "run")[0]["train/on_policy_log_ratio"] <= 1e-5
    assert "train/kl_to_base" in rows(tmp_path / "run")[0]
    succeeded(sdpo("sample", "run", "cat", "--steps", "2", "--seed", "3", "-o", "cat.png"))
    tuned = wrap_pipeline(DiffusionPipeline.from_pretrained(tmp_path / "run" / "model"), size=SIZE)
    (image,) = tuned.generate(["cat"], 2, [3], 1.0)
    assert np.abs(np.asarray(Image.open(tmp_path / "cat.png"), int) - np.asarray(image, int)).max() <= 2


def test_a_noise_form_that_the_family_lacks_is_refused(sdpo: Run, pipeline_path: Callable[[str], Path]) -> None:
    name = "SanaSprintPipeline"
    result = sdpo("train", *overrides(pipeline_path(name), name), "sample.noise_form=flow_grpo", "--output-dir", "run")
    assert result.returncode == 2 and "sample.noise_form=flow_grpo is for flow models" in result.stderr


def test_a_single_step_has_nothing_to_learn_from(sdpo: Run, pipeline_path: Callable[[str], Path]) -> None:
    name = "FluxPipeline"
    result = sdpo("train", *overrides(pipeline_path(name), name), "sample.num_steps=1", "--output-dir", "run")
    assert result.returncode == 2 and "sample.num_steps=2 or more" in result.stderr
