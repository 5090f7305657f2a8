"""Runs on a pipeline of the user's own: commands on the run load the weights that it was trained on, or refuse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.command_line import Run, failed, succeeded
from helpers.pipelines import load_pipeline
from helpers.small_run import config

from sdpo import Config, Trainer
from sdpo.backbones import load_backbone


def fused(path: Path, lora: Path, dtype: torch.dtype) -> Any:
    pipeline = load_pipeline(path, dtype)
    pipeline.load_lora_weights(str(lora), adapter_name="fast")
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()
    return pipeline


def trained(pipeline: Any, run: Path) -> str:
    """Train the small run for an epoch; returns the path of the model in its configuration."""
    Trainer(config(None, run, epochs=1), pipeline=pipeline).train()
    return Config.load(run / "config.yaml").model.path


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_run_forgets_the_origin_of_a_pipeline_whose_weights_were_changed(
    sdpo: Run, tmp_path: Path, tiny_pipeline: Path, dtype: torch.dtype
) -> None:
    """Commands on the run would load the weights of the origin, and not those that the run was trained on."""
    teacher = load_backbone(str(tiny_pipeline))
    teacher.train_lora(2, 2, None)
    for parameter in teacher.trainable_parameters().values():
        torch.nn.init.normal_(parameter)
    lora = teacher.save(tmp_path)

    assert trained(load_pipeline(tiny_pipeline, dtype), tmp_path / "plain") == str(tiny_pipeline)
    succeeded(sdpo("sample", "plain", "cat"))
    assert trained(fused(tiny_pipeline, lora, dtype), tmp_path / "changed") == "(in Python)"
    failed(sdpo("sample", "changed", "cat"), "as by fuse_lora: save the pipeline with pipeline.save_pretrained(FOLDER)")
    fused(tiny_pipeline, lora, dtype).save_pretrained(tmp_path / "fused")
    assert trained(load_pipeline(tmp_path / "fused", dtype), tmp_path / "saved") == str(tmp_path / "fused")
    succeeded(sdpo("sample", "saved", "cat"))
