"""A LoRA that is merged into the base weights, as a distillation LoRA is, and a trained LoRA on top of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from diffusers.utils import convert_state_dict_to_kohya
from helpers.command_line import Run, failed, succeeded
from helpers.families import wrapped
from helpers.family_runs import Pipelines, image_of, loaded, on_disk, overrides
from helpers.flow_pipelines import SIDE
from helpers.pipelines import PIPELINES
from helpers.run_files import LORA, rows
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sdpo.backbones import wrap_pipeline

SCALE = 0.7
UNET_TARGETS = ["to_q", "to_k", "to_out.0", "conv1", "conv_in"]  # convolutions too, as in LCM-LoRA


def distilled(name: str, folder: Path, kohya: bool = False) -> tuple[Path, dict[str, Tensor]]:
    """Write a LoRA file of rank 2 and α 4; returns the file and the product that it adds to each weight."""
    backbone = wrapped(PIPELINES[name])
    backbone.train_lora(2, 4, UNET_TARGETS if backbone.component == "unet" else None)
    parameters = backbone.trainable_parameters()
    torch.manual_seed(1)
    for parameter in parameters.values():
        nn.init.normal_(parameter, std=0.2)
    added = {}
    for key, down in parameters.items():
        if ".lora_A." in key:
            up = parameters[key.replace(".lora_A.", ".lora_B.")]
            product = torch.einsum("or,ri...->oi...", up.flatten(1), down)
            added[key.replace(".lora_A.default", "")] = 4 / 2 * product.detach()
    file = backbone.save(folder) / LORA
    if kohya:
        weights = convert_state_dict_to_kohya(load_file(file))
        alphas = {key: torch.tensor(4.0) for key in weights if key.endswith(".alpha")}
        assert alphas and all(key.startswith("lora_unet_") for key in weights)
        save_file({key: value.contiguous() for key, value in (weights | alphas).items()}, file)
    return file, added


@pytest.mark.parametrize(("name", "kohya"), [
    ("StableDiffusionPipeline", False),
    ("StableDiffusionPipeline", True),
    ("StableDiffusionXLPipeline", False),
    ("LatentConsistencyModelPipeline", False),
    ("FluxPipeline", False),
])  # fmt: skip
def test_the_base_weights_contain_the_scaled_lora(name: str, kohya: bool, tmp_path: Path) -> None:
    file, added = distilled(name, tmp_path, kohya)
    base = dict(wrapped(PIPELINES[name]).network_module.named_parameters())
    backbone = wrapped(PIPELINES[name], fuse_lora={"path": str(file), "scale": SCALE, "weight_name": None})
    fused = dict(backbone.network_module.named_parameters())
    assert fused.keys() == base.keys() and added.keys() <= base.keys()
    assert not any(p.requires_grad for p in fused.values())
    for key, weight in base.items():
        expected = weight + SCALE * added[key].reshape(weight.shape) if key in added else weight
        torch.testing.assert_close(fused[key], expected, atol=1e-6, rtol=1e-5)
    # A trained LoRA comes on top, and the model without it is the fused one.
    backbone.train_lora(2, 2, None)
    assert all(".lora_" in key for key in backbone.trainable_parameters())
    latents, steps, one = torch.randn(1, *backbone.latent_shape), torch.tensor([500]), backbone.encode(["a cat"])
    with torch.no_grad():
        plain = backbone.network(latents, steps, one)
        for parameter in backbone.trainable_parameters().values():
            nn.init.normal_(parameter)
        assert not torch.equal(backbone.network(latents, steps, one), plain)
        with backbone.reference():
            assert torch.equal(backbone.network(latents, steps, one), plain)


def test_a_run_on_a_fused_base(sdpo: Run, tmp_path: Path, pipeline_path: Pipelines) -> None:
    name = "StableDiffusionXLPipeline"
    file, _ = distilled(name, tmp_path / "fast")
    fuse = f"model.fuse_lora={{path: {file.parent}, scale: {SCALE}, weight_name: {file.name}}}"
    succeeded(sdpo("train", "emoji", *overrides(pipeline_path, name), fuse, "epochs=1", "--output-dir", "run"))
    (row,) = rows(tmp_path / "run")
    assert row["train/on_policy_log_ratio"] <= 1e-5 and row["train/grad_norm"] > 0
    succeeded(sdpo("sample", "run", "cat", "--steps", "2", "--seed", "3", "--compare", "-o", "both.png"))

    # The same model, built by diffusers alone.
    backbone = loaded(pipeline_path(name), name)
    before = image_of(backbone, name)
    pipeline: Any = backbone.pipeline
    pipeline.load_lora_weights(str(file))
    pipeline.fuse_lora(lora_scale=SCALE)
    pipeline.unload_lora_weights()
    base = image_of(backbone, name)
    pipeline.load_lora_weights(str(tmp_path / "run" / "lora"))
    expected = np.concatenate([base, image_of(backbone, name)], 1)
    assert np.abs(on_disk(tmp_path / "both.png") - expected).max() <= 2
    assert (before != base).any() and (expected[:, :SIDE] != expected[:, SIDE:]).any()


def test_all_weights_trained_on_a_fused_base(sdpo: Run, tmp_path: Path, pipeline_path: Pipelines) -> None:
    """The saved pipeline contains the fused LoRA and the replaced scheduler, and neither is applied twice."""
    name = "StableDiffusionPipeline"
    file, _ = distilled(name, tmp_path / "fast")
    extra = [f"model.fuse_lora.path={file}", "model.scheduler={name: LCMScheduler, timestep_scaling: 9.0}", "lora=null",
             "epochs=1", "train.learning_rate=1.0e-9"]  # fmt: skip
    succeeded(sdpo("train", "emoji", *overrides(pipeline_path, name), *extra, "--output-dir", "run"))
    succeeded(sdpo("sample", "run", "cat", "--steps", "2", "--seed", "3", "--compare", "-o", "both.png"))
    both = on_disk(tmp_path / "both.png")
    assert np.abs(both[:, :SIDE] - both[:, SIDE:]).max() <= 2
    saved = DiffusionPipeline.from_pretrained(tmp_path / "run" / "model")
    assert type(saved.scheduler).__name__ == "LCMScheduler" and saved.scheduler.config.timestep_scaling == 9.0
    (image,) = wrap_pipeline(saved, size=(SIDE, SIDE)).generate(["cat"], 2, [3], 1.0)
    assert isinstance(image, Image.Image) and np.abs(np.asarray(image, int) - both[:, SIDE:]).max() <= 2


def test_a_lora_that_cannot_be_fused_is_refused(sdpo: Run, tmp_path: Path, pipeline_path: Pipelines) -> None:
    command = ["train", "emoji", *overrides(pipeline_path, "StableDiffusionPipeline"), "--output-dir", "run"]

    nowhere = tmp_path / "nowhere.safetensors"
    failed(sdpo(*command, f"model.fuse_lora.path={nowhere}"), str(nowhere), "model.fuse_lora")
    other, _ = distilled("StableDiffusionXLPipeline", tmp_path / "xl")
    words = ("model.fuse_lora", "cannot be loaded onto this model")
    failed(sdpo(*command, f"model.fuse_lora.path={other}"), str(other), *words)
    layer = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj"
    text = {f"{layer}.lora_A.weight": torch.zeros(2, 16), f"{layer}.lora_B.weight": torch.zeros(16, 2)}
    save_file(text, tmp_path / "text.safetensors")
    words = ("model.fuse_lora", "no weights for the denoising network")
    failed(sdpo(*command, f"model.fuse_lora.path={tmp_path}/text.safetensors"), f"{tmp_path}/text.safetensors", *words)
