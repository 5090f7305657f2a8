"""Every preset is a legal run that explains what it costs, without a network or any weights."""

from __future__ import annotations

import pytest
from helpers.command_line import Run, succeeded

from sdpo.config.load import preset_names, preset_summary
from sdpo.config.schema import Config

HUB = {"sdxl-turbo-pickscore", "lcm-aesthetic", "sd35-turbo-pickscore", "flux-schnell-hpsv2", "z-image-turbo-pickscore",
       "sana-sprint-pickscore", "sdxl-lightning-pickscore", "hyper-sd-pickscore"}  # fmt: skip


@pytest.mark.parametrize("name", preset_names())
def test_a_dry_run_needs_no_network(sdpo: Run, name: str) -> None:
    assert "# an epoch:" in succeeded(sdpo("train", name, "--dry-run")).stdout
    assert preset_summary(name) and not preset_summary(name).startswith("#")


def test_the_presets_of_real_few_step_models() -> None:
    assert {*preset_names()} >= HUB
    for name in HUB:
        config = Config.load(name)
        assert 2 <= config.sample.num_steps <= 8 and config.lora is not None
        assert config.sample.num_steps in config.evaluate.steps
        assert config.train.batch_size >= 32
    sd35 = Config.load("sd35-turbo-pickscore")
    assert sd35.model.scheduler == {"shift_terminal": 0.25} and 1 not in sd35.evaluate.steps
    assert Config.load("sana-sprint-pickscore").sample.guidance_scale == 4.5
    for name in ("sdxl-lightning-pickscore", "hyper-sd-pickscore"):  # SDXL's own timesteps do not begin at the noise
        model = Config.load(name).model
        fused = model.fuse_lora
        assert fused is not None and fused.scale == 1 and "4step" in str(fused.weight_name)
        assert model.scheduler is not None and model.scheduler["timestep_spacing"] == "trailing"


@pytest.mark.parametrize("name", preset_names())
def test_below_float32_sampling_and_update_share_a_micro_batch(name: str) -> None:
    config = Config.load(name)
    assert config.model.dtype == "float32" or config.sample.micro_batch == config.train.micro_batch


@pytest.mark.parametrize("name", ["aesthetic-1gpu", "aesthetic-4gpu"])
def test_variants_for_other_machines_are_the_same_experiment(name: str) -> None:
    """Nothing but what fits the machine differs from the published set-up."""
    published, variant = (Config.load(n).model_dump() for n in ("aesthetic", name))
    for config in (published, variant):
        for section, key in (("sample", "micro_batch"), ("train", "micro_batch"), ("model", "text_encoders")):
            del config[section][key]
        del config["scoring"]
    assert published == variant
