"""A bare model gets what its authors publish: guidance, precision, and the sampler of the pipeline's own call."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from helpers.command_line import Run, succeeded
from helpers.families import wrapped
from helpers.flow_pipelines import FLOW_PIPELINES, SIDE
from helpers.paths import REPOSITORY
from helpers.pipelines import PIPELINES, latent_consistency, load_pipeline, stable_diffusion
from PIL import Image

from sdpo import Config, Trainer
from sdpo.assembly.model import with_own_dtype
from sdpo.backbones import family_settings as module
from sdpo.backbones import own_dtype
from sdpo.backbones.family_settings import BY_CLASS, FamilySettings
from sdpo.backbones.load import EMBEDDED, FAMILIES
from sdpo.config.differences import check_same_run, differences

GUIDANCE = {"LatentConsistencyModelPipeline": 8.0, "SanaSprintPipeline": 4.5}
CUDA = torch.device("cuda")


@pytest.mark.parametrize("name", FAMILIES)
def test_every_supported_class_has_settings_with_a_source(name: str) -> None:
    settings = BY_CLASS[name]
    assert "model card of" in settings.source and settings.guidance_scale >= 1
    assert 4 <= settings.steps <= 9, "a few-step model"


@pytest.mark.parametrize("name", [n for n in PIPELINES if n != "FluxPipeline"])
def test_the_guidance_of_each_class(name: str) -> None:
    backbone = wrapped(PIPELINES[name])
    assert backbone.guidance_scale(None) == GUIDANCE.get(name, 1.0)
    assert backbone.guidance_scale(2.5) == 2.5


def test_the_guidance_of_what_one_class_has_several_of() -> None:
    flux = wrapped(FLOW_PIPELINES["FluxPipeline"])
    embeds = bool(flux.network_config.guidance_embeds)
    assert flux.own_settings.family == ("FLUX.1-dev" if embeds else "FLUX.1-schnell")
    assert flux.guidance_scale(None) == (3.5 if embeds else 1.0)
    klein = wrapped(FLOW_PIPELINES["Flux2KleinPipeline"])
    klein.pipeline.register_to_config(is_distilled=False)
    assert klein.guidance_scale(None) == 4.0
    plain = wrapped(stable_diffusion)
    # An SD UNet with LCM's guidance embedding is an LCM, whatever its pipeline's class.
    plain.pipeline.unet.register_to_config(time_cond_proj_dim=32)
    assert plain.guidance_scale(None) == 8.0


def test_the_precision_of_each_class_on_a_gpu_and_on_a_cpu(tmp_path: Path) -> None:
    for name, make in {
        "lcm": latent_consistency,
        "sana": PIPELINES["SanaSprintPipeline"],
        "sd": stable_diffusion,
    }.items():
        make().save_pretrained(tmp_path / name)
    expected = {"lcm": "float32", "sana": "bfloat16", "sd": "float16"}
    assert {name: own_dtype(str(tmp_path / name)) for name in expected} == expected
    assert [own_dtype(name) for name in EMBEDDED] == ["float32"]
    config = Config.load("emoji", model={"path": str(tmp_path / "sana")})
    assert config.model.dtype is None
    assert with_own_dtype(config, CUDA).model.dtype == "bfloat16"
    assert with_own_dtype(config, torch.device("cpu")).model.dtype == "float32"
    chosen = Config.load("emoji", model={"path": str(tmp_path / "sana"), "dtype": "float16"})
    assert with_own_dtype(chosen, CUDA) is chosen


def test_sample_of_a_bare_lcm_is_the_authors_call(sdpo: Run, tmp_path: Path) -> None:
    torch.manual_seed(0)
    latent_consistency().save_pretrained(tmp_path / "lcm")
    succeeded(sdpo("sample", str(tmp_path / "lcm"), "a cat", "--steps", "4", "--seed", "3", "-o", "ours.png"))
    pipeline = load_pipeline(tmp_path / "lcm")
    pipeline.set_progress_bar_config(disable=True)

    def called(guidance_scale: float) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
        generator = torch.Generator().manual_seed(3)
        image = pipeline("a cat", num_inference_steps=4, guidance_scale=guidance_scale, generator=generator).images[0]
        return np.array(image).astype(np.int64)

    ours = np.array(Image.open(tmp_path / "ours.png")).astype(np.int64)
    assert np.abs(ours - called(8.0)).max() <= 2
    assert np.abs(called(1.0) - called(8.0)).max() > 2, "guidance matters to this model"


def test_a_run_records_the_values_that_it_had(tmp_path: Path) -> None:
    torch.manual_seed(0)
    latent_consistency().save_pretrained(tmp_path / "lcm")
    config = Config.load(
        "emoji",
        epochs=1,
        output_dir=str(tmp_path / "run"),
        model={"path": str(tmp_path / "lcm"), "height": SIDE, "width": SIDE},
        lora={"rank": 2, "alpha": 2, "targets": ["to_q"]},
        prompts={"train": ["cat", "dog"], "unseen": None},
        rewards={"colorfulness": 1.0},
        sample={"num_steps": 2, "prompts_per_epoch": 2},
        train={"batch_size": 2},
        evaluate={"steps": [1], "images_per_prompt": 1, "judge": None},
    )
    assert config.sample.guidance_scale is None
    trainer = Trainer(config)
    trainer.train()
    stored = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert stored["sample"]["guidance_scale"] == 8.0 and stored["model"]["dtype"] == "float32"
    assert trainer.parts.policy.guidance_scale == 8.0
    check_same_run(trainer.config, tmp_path / "run" / "config.yaml")
    assert differences(stored, config.model_dump(mode="json"), frozenset()) == {}, "null is the model's own"


def test_the_doctor_warns_where_a_run_leaves_them(sdpo: Run, tmp_path: Path) -> None:
    torch.manual_seed(0)
    latent_consistency().save_pretrained(tmp_path / "lcm")
    words = ["doctor", "emoji", f"model={{path: {tmp_path / 'lcm'}, height: {SIDE}, width: {SIDE}}}"]
    words += ["rewards={colorfulness: 1}", "evaluate.judge=null", "lora.targets=null", "sample.num_steps=4"]
    assert "family" not in sdpo(*words).stdout
    left = sdpo(*words, "sample.guidance_scale=1", "sample.num_steps=20").stdout
    assert "WARN  family" in left and "LCM: sample.guidance_scale is 1 (theirs: 8)" in left
    assert "sample.num_steps is 20 (theirs: up to 8)" in left and "SimianLuo/LCM_Dreamshaper_v7" in left


def test_the_page_has_the_settings_of_every_family() -> None:
    settings = [value for value in vars(module).values() if isinstance(value, FamilySettings)]
    page = (REPOSITORY / "docs" / "models.md").read_text()
    rows = {f"| {s.family} | {s.guidance_scale:g} | {s.dtype} | {s.steps} | {s.source} |" for s in settings}
    assert len(rows) == 11 and {line for line in page.splitlines() if line in rows} == rows
