"""A LoRA merged into the weights: what rounding to their data type leaves of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers.families import wrapped
from helpers.pipelines import PIPELINES
from safetensors.torch import load_file
from torch import nn

from sdpo.backbones import PipelineBackbone, load_backbone

UNET = "diffusion_pytorch_model.safetensors"


def trained(std: float, rank: int = 2) -> PipelineBackbone:
    """A model with base weights of about 0.3 and a LoRA whose product has about std² · √rank."""
    backbone = wrapped(PIPELINES["StableDiffusionPipeline"])
    backbone.train_lora(rank, 2 * rank, ["to_q", "to_k", "conv1"])
    torch.manual_seed(1)
    for parameter in backbone.trainable_parameters().values():
        nn.init.normal_(parameter, std=std)
    return backbone


def base_model(path: Path) -> Path:
    wrapped(PIPELINES["StableDiffusionPipeline"]).pipeline.save_pretrained(path / "base")
    return path / "base"


def deltas(backbone: PipelineBackbone) -> dict[str, torch.Tensor]:
    """(α / r) · B·A of each module, in float64."""
    parameters = {name: p.detach().double() for name, p in backbone.trainable_parameters().items()}
    return {
        name.replace(".lora_A.default", ""): 2
        * torch.einsum("or,ri...->oi...", parameters[name.replace("lora_A", "lora_B")].flatten(1), down)
        for name, down in parameters.items()
        if ".lora_A." in name
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("loaded", [True, False])
@pytest.mark.parametrize("std", [0.3, 0.02])
def test_the_difference_is_that_of_the_written_weights(
    std: float, loaded: bool, dtype: torch.dtype, tmp_path: Path
) -> None:
    """Of a LoRA that was trained, and of one that bfloat16 rounded when it was loaded."""
    base = base_model(tmp_path)
    backbone, wanted = trained(std), deltas(trained(std))
    if loaded:
        backbone.save(tmp_path)
        backbone = load_backbone(str(base), dtype=dtype)
        backbone.load_lora(tmp_path / "lora")
    difference = backbone.save_merged(tmp_path / "merged", dtype)
    before, after = load_file(base / "unet" / UNET), load_file(tmp_path / "merged" / "unet" / UNET)
    assert before.keys() == after.keys() and all(weight.dtype == dtype for weight in after.values())
    error = size = 0.0
    for name, weight in before.items():
        kept = after[name].double() - weight.to(dtype).double()
        if name not in wanted:
            assert not kept.any()
            continue
        error += (kept - wanted[name].reshape(kept.shape)).square().sum().item()
        size += wanted[name].square().sum().item()
    relative = (error / size) ** 0.5
    assert difference == pytest.approx(relative, rel=0.02, abs=1e-3)
    smallest = {torch.float32: 0.0, torch.float16: 1e-4, torch.bfloat16: 0.05 if std == 0.02 else 1e-3}
    assert smallest[dtype] <= relative < 1 and (dtype != torch.float32 or relative < 1e-4)
    load_backbone(str(tmp_path / "merged"), dtype=dtype)


def test_a_lora_of_zeros_differs_by_nothing(tmp_path: Path) -> None:
    assert trained(0.0).save_merged(tmp_path / "merged", torch.bfloat16) == 0


def test_a_model_without_a_lora_is_written_as_it_is(tmp_path: Path) -> None:
    backbone = wrapped(PIPELINES["StableDiffusionPipeline"])
    before = {name: weight.clone() for name, weight in backbone.network_module.state_dict().items()}
    assert backbone.save_merged(tmp_path / "merged", torch.float32) == 0
    after = load_file(tmp_path / "merged" / "unet" / UNET)
    assert all(torch.equal(after[name], weight) for name, weight in before.items())
