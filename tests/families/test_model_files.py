"""Unusable models end with exit code 2 and a list of the supported classes; decoders of large images use tiles."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers.command_line import Run, failed, succeeded
from helpers.flow_pipelines import autoencoder
from helpers.pipelines import stable_diffusion
from safetensors.torch import load_file

from sdpo.backbones import wrap_pipeline
from sdpo.backbones.load import FAMILIES
from sdpo.errors import UserError


def index(model: Path, **changes: object) -> None:
    file = model / "model_index.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def pickled(model: Path) -> None:
    file = model / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(file), file.with_suffix(".bin"))
    file.unlink()


def damaged(model: Path) -> None:
    file = model / "unet" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])


DEFECTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no pipeline": (lambda model: (model / "model_index.json").unlink(), "no model_index.json"),
    "an index that is no JSON": (lambda model: (model / "model_index.json").write_text("{"), "cannot be read"),
    "an index without a class": (lambda model: (model / "model_index.json").write_text("{}"), "_class_name"),
    "an unsupported class": (lambda model: index(model, _class_name="KandinskyPipeline"), "is a KandinskyPipeline"),
    "a missing subfolder": (lambda model: shutil.rmtree(model / "unet"), "no subfolder unet/"),
    "a missing text encoder": (lambda model: shutil.rmtree(model / "text_encoder"), "no subfolder text_encoder/"),
    "pickled weights alone": (pickled, "pickled weights alone"),
    "no weights": (lambda model: (model / "unet" / "diffusion_pytorch_model.safetensors").unlink(), "unet"),
    "damaged weights": (damaged, "cannot be loaded"),
    "no network config": (lambda model: (model / "unet" / "config.json").unlink(), "cannot be loaded"),
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_an_unusable_model_directory_is_refused(sdpo: Run, tmp_path: Path, tiny_pipeline: Path, defect: str) -> None:
    break_it, words = DEFECTS[defect]
    model = tmp_path / "broken"
    shutil.copytree(tiny_pipeline, model)
    break_it(model)
    failed(sdpo("train", "emoji", f"model.path={model}", "--output-dir", "run"), str(model), words, *FAMILIES)


def test_pickles_beside_safetensors_are_never_opened(sdpo: Run, tmp_path: Path, tiny_pipeline: Path) -> None:
    model = tmp_path / "both"
    shutil.copytree(tiny_pipeline, model)
    (model / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"never opened")
    succeeded(sdpo("sample", str(model), "cat", "--steps", "1", "-o", "cat.png"))


def test_a_variant_is_loaded_by_its_name(sdpo: Run, tmp_path: Path) -> None:
    model = tmp_path / "half"
    pipeline = stable_diffusion()
    pipeline.save_pretrained(model, variant="fp16", safe_serialization=True)
    command = ["train", f"model.path={model}", "epochs=1", "prompts={train: [cat], unseen: null}",
               "rewards={colorfulness: 1.0}", "sample={num_steps: 2, prompts_per_epoch: 2}", "train.batch_size=2",
               "evaluate={every: 0, steps: [1], images_per_prompt: 1, judge: null}"]  # fmt: skip
    succeeded(sdpo(*command, "model.variant=fp16", "--output-dir", "run"))
    failed(sdpo(*command, "model.variant=bf16", "--output-dir", "other"), "cannot be loaded")


# -- sizes -----------------------------------------------------------------------------------------------------------


def test_a_decoder_of_large_images_works_in_slices_and_tiles() -> None:
    pipeline = stable_diffusion()
    pipeline.vae = autoencoder(4)
    small = wrap_pipeline(pipeline, size=(1024, 1024))
    assert not small.pipeline.vae.use_slicing and not small.pipeline.vae.use_tiling
    latents = torch.randn(2, 4, 24, 24)
    whole = small.decode(latents)
    large = wrap_pipeline(pipeline, size=(1024, 1026))
    vae = large.pipeline.vae
    assert vae.use_slicing and vae.use_tiling and large.latent_shape == (4, 512, 513)
    vae.disable_tiling()
    torch.testing.assert_close(large.decode(latents), whole, atol=1e-5, rtol=0)  # slices change nothing
    vae.enable_tiling()
    vae.tile_latent_min_size, vae.tile_sample_min_size = 16, 32
    tiled = large.decode(latents)
    assert tiled.shape == whole.shape and 0 <= tiled.min() and tiled.max() <= 1
    assert (tiled - whole).abs().mean() < 0.1  # tiles are blended, so that the images are only similar


def test_a_size_that_the_model_cannot_draw_is_refused() -> None:
    with pytest.raises(UserError, match="multiples of 2, got 33 and 32"):
        wrap_pipeline(stable_diffusion(), size=(33, 32))
