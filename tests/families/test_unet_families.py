"""Comparison of the UNet families with the pipelines' own calls, on every supported scheduler."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    LCMScheduler,
)
from helpers.families import PROMPTS, check_parity, trajectories, wrapped
from helpers.pipelines import latent_consistency, stable_diffusion, stable_diffusion_xl

from sdpo.backbones import PipelineBackbone, wrap_pipeline
from sdpo.errors import UserError
from sdpo.loop.policy import Policy
from sdpo.system import log

NOISE = dict(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)


def ddim(**extra: Any) -> DDIMScheduler:
    return DDIMScheduler(**NOISE | {"timestep_spacing": "trailing", "clip_sample": False} | extra)


def euler(**extra: Any) -> EulerDiscreteScheduler:
    return EulerDiscreteScheduler(**NOISE | {"timestep_spacing": "trailing"} | extra)


def ancestral(**extra: Any) -> EulerAncestralDiscreteScheduler:
    return EulerAncestralDiscreteScheduler(**NOISE | {"timestep_spacing": "trailing"} | extra)


V, SAMPLE = {"prediction_type": "v_prediction"}, {"prediction_type": "sample"}
SD, XL = stable_diffusion, stable_diffusion_xl
# Pipeline, scheduler and guidance scale of each case.
WITHOUT_NOISE: dict[str, tuple[Callable[[], Any], Callable[[], Any], float]] = {
    "SD-Turbo on DDIM": (SD, lambda: ddim(set_alpha_to_one=False), 1.0),
    "SD, DDIM, final alpha 1, v": (SD, lambda: ddim(**V), 1.0),
    "SD, DDIM, guided, v": (SD, lambda: ddim(set_alpha_to_one=False, **V), 3.0),
    "SD, DDIM, sample": (SD, lambda: ddim(**SAMPLE), 1.0),
    "SD, DDIM, zero terminal SNR, v": (SD, lambda: ddim(rescale_betas_zero_snr=True, **V), 2.0),
    "SD 1.5, DDIM, leading, clipped": (
        SD,
        lambda: ddim(timestep_spacing="leading", steps_offset=1, set_alpha_to_one=False, clip_sample=True),
        2.0,
    ),
    "SD-Turbo on Euler": (SD, euler, 1.0),
    "SD, Euler, v": (SD, lambda: euler(**V), 1.0),
    "SD, Euler, guided": (SD, euler, 3.0),
    "SD, Euler, sample, linspace": (SD, lambda: euler(timestep_spacing="linspace", **SAMPLE), 1.0),
    "SDXL on DDIM": (XL, lambda: ddim(set_alpha_to_one=False), 1.0),
    "SDXL, DDIM, guided, v": (XL, lambda: ddim(**V), 3.0),
    "SDXL-Lightning on Euler": (XL, euler, 1.0),
    "SDXL on its Euler, guided": (XL, lambda: euler(timestep_spacing="leading", steps_offset=1), 3.0),
}


@pytest.mark.parametrize("model", WITHOUT_NOISE)
def test_without_noise_latents_equal_the_pipelines(model: str) -> None:
    make, scheduler, guidance = WITHOUT_NOISE[model]
    backbone = wrapped(make)
    backbone.pipeline.scheduler = scheduler()
    check_parity(model, backbone, 0.0, guidance)


# Schedulers that draw noise: the test hands the sampler's noise to the pipeline.
WITH_NOISE: dict[str, tuple[Callable[[], Any], Callable[[], Any], float]] = {
    "SD, DDIM with η = 1, final alpha 0": (SD, lambda: ddim(set_alpha_to_one=False), 1.0),
    "SD, DDIM with η = 1": (SD, ddim, 3.0),
    "SD on EulerAncestral": (SD, ancestral, 1.0),
    "SD, EulerAncestral, guided, v": (SD, lambda: ancestral(**V), 3.0),
    "SDXL-Turbo on EulerAncestral": (XL, ancestral, 1.0),
    "SDXL, EulerAncestral, guided": (XL, ancestral, 3.0),
    "LCM": (latent_consistency, LCMScheduler, 1.0),
    "LCM, guided": (latent_consistency, LCMScheduler, 8.5),
    "LCM, v, clipped": (latent_consistency, lambda: LCMScheduler(clip_sample=True, **V), 8.5),
    "SD on LCM": (SD, LCMScheduler, 1.0),
    "SD on LCM, guided, sample": (SD, lambda: LCMScheduler(**SAMPLE), 2.0),
    "SDXL on LCM, guided": (XL, LCMScheduler, 2.0),
}


@pytest.mark.parametrize("model", WITH_NOISE)
def test_with_equal_noise_latents_equal_the_pipelines(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make, scheduler, guidance = WITH_NOISE[model]
    backbone = wrapped(make)
    backbone.pipeline.scheduler = scheduler()
    config = backbone.pipeline.scheduler.config
    call = {"eta": 1.0} if isinstance(backbone.pipeline.scheduler, DDIMScheduler) else None
    noisy_end = not config.get("set_alpha_to_one", True) and call is not None
    check_parity(model, backbone, 1.0, guidance, monkeypatch, call, noisy_end)


@pytest.mark.parametrize("spacing", ["leading", "linspace"])
@pytest.mark.parametrize("make", [ddim, euler, ancestral])
def test_a_step_from_timestep_0_is_its_clean_latent(make: Callable[..., Any], spacing: str) -> None:
    """A step from timestep 0 has no noise and no density, and its image equals the one of the pipeline's call."""
    backbone = wrapped(SD)
    backbone.pipeline.scheduler = make(timestep_spacing=spacing)
    denoiser = backbone.denoiser(4, 1.0)
    assert denoiser.timesteps[-1] == 0
    assert denoiser.stochastic.tolist() == [True, True, True, False]
    assert not denoiser.ends_random
    ours = trajectories(Policy(backbone), 4, eta=1.0)
    assert ours.x0 is not None
    assert (ours.states[:, 0, -1] - ours.x0[:, 0, -1]).abs().max() <= 1e-5
    assert ours.log_prob[:, :, :3].isfinite().all() and not ours.log_prob[:, :, 3].any()


def test_every_input_of_the_network_changes_its_output() -> None:
    """Comparing two samplers reveals nothing about an input that neither of them uses."""
    for make in (SD, XL, latent_consistency):
        backbone = wrapped(make)
        one = backbone.encode(PROMPTS)
        assert set(one) == ({"encoder_hidden_states", "text_embeds", "time_ids"} if make is XL else
                            {"encoder_hidden_states"})  # fmt: skip
        latents, timesteps = torch.randn(2, *backbone.latent_shape), torch.tensor([999, 499])
        with torch.no_grad():
            plain = backbone.network(latents, timesteps, one)
            for name, rows in one.items():
                other = backbone.network(latents, timesteps, one | {name: rows + 1})
                assert (other - plain).abs().max() > 1e-4, name
            if make is latent_consistency:
                assert backbone.guidance == "embedded"
                assert (backbone.network(latents, timesteps, one, 8.5) - plain).abs().max() > 1e-4


def test_an_xl_model_gets_the_image_size() -> None:
    assert wrapped(XL).encode(["a cat"])["time_ids"].tolist() == [[32, 32, 0, 0, 32, 32]]
    assert wrap_pipeline(XL()).encode(["a cat"])["time_ids"].tolist() == [[16, 16, 0, 0, 16, 16]]


def test_the_empty_prompt_is_zeros_where_the_xl_config_asks_for_zeros() -> None:
    backbone = wrapped(XL)
    assert backbone.pipeline.config.force_zeros_for_empty_prompt
    zeros = backbone.unconditional()
    assert not zeros["encoder_hidden_states"].any() and not zeros["text_embeds"].any() and zeros["time_ids"].any()
    backbone.pipeline.scheduler = euler()
    backbone.pipeline.register_to_config(force_zeros_for_empty_prompt=False)
    assert torch.equal(backbone.unconditional()["text_embeds"], backbone.encode([""])["text_embeds"])
    check_parity("SDXL, guided from an empty prompt", backbone, 0.0, 3.0)


# -- refused and replaced schedulers ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "scheduler", "steps", "eta", "words"),
    [
        (SD, DPMSolverMultistepScheduler, 4, 1.0, "DPMSolverMultistepScheduler.*DDIMScheduler, .*LCMScheduler"),
        (SD, lambda: ddim(thresholding=True), 4, 1.0, "model.scheduler.thresholding=false"),
        (SD, lambda: ddim(rescale_betas_zero_snr=True), 4, 1.0, "zero terminal SNR"),
        (SD, ddim, 1001, 1.0, "1001.*1000"),
        (XL, euler, 1001, 1.0, "1001.*1000"),
        (latent_consistency, LCMScheduler, 51, 1.0, "51.*50"),
        (latent_consistency, LCMScheduler, 4, 0.5, "sample.eta is 0.5.*use 1.0"),
    ],
)
def test_schedules_without_a_transition_are_refused(
    make: Callable[[], Any], scheduler: Callable[[], Any], steps: int, eta: float, words: str
) -> None:
    backbone = wrapped(make)
    backbone.pipeline.scheduler = scheduler()
    with pytest.raises(UserError, match=words):
        backbone.denoiser(steps, eta)


def test_a_replaced_scheduler_keeps_the_noise_levels() -> None:
    pipeline = SD()
    pipeline.scheduler = ddim(**V)
    backbone = wrap_pipeline(pipeline, scheduler={"name": "LCMScheduler", "original_inference_steps": 20})
    scheduler = backbone.pipeline.scheduler
    assert isinstance(scheduler, LCMScheduler) and scheduler.config.original_inference_steps == 20
    assert scheduler.config.prediction_type == "v_prediction" and scheduler.config.beta_schedule == "scaled_linear"
    backbone = wrap_pipeline(SD(), scheduler={"timestep_spacing": "leading"})
    assert isinstance(backbone.pipeline.scheduler, DDIMScheduler)
    assert backbone.denoiser(2, 1.0).timesteps.tolist() == [501, 1]


OWN = {"timestep_spacing": "trailing"}


@pytest.mark.parametrize(
    ("present", "settings", "clips"),
    [
        (euler, {"name": "DDIMScheduler"}, False),
        (ancestral, {"name": "DDIMScheduler"}, False),
        (LCMScheduler, {"name": "DDIMScheduler", **OWN}, False),
        (lambda: LCMScheduler(clip_sample=True), {"name": "DDIMScheduler", **OWN}, True),
        (euler, {"name": "DDIMScheduler", "clip_sample": True}, True),
        (euler, {"name": "LCMScheduler"}, False),
        (lambda: ddim(clip_sample=True), {"set_alpha_to_one": False}, True),
        (DDIMScheduler, OWN, True),
        (DDIMScheduler, {"clip_sample": False, **OWN}, False),
        (ddim, OWN, False),
    ],
)
def test_a_replaced_scheduler_clips_only_where_the_model_or_the_user_says_so(
    present: Callable[[], Any], settings: dict[str, Any], clips: bool
) -> None:
    """Latents are not in −1 … 1: diffusers' default of DDIM would cut them off."""
    pipeline = SD()
    pipeline.scheduler = present()
    backbone = wrap_pipeline(pipeline, scheduler=settings)
    assert backbone.pipeline.scheduler.config.clip_sample is clips
    denoiser = backbone.denoiser(2, 1.0)
    latents = torch.full((1, *backbone.latent_shape), 50.0)
    x0 = denoiser.transition(latents, torch.zeros_like(latents), torch.tensor([0])).x0
    assert x0 is not None and (x0.max() == 1 if clips else x0.max() > 1)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "sdpo"]


@pytest.mark.parametrize(
    ("make", "steps", "first"),
    [(ddim, 1, 1), (ddim, 4, 751), (ddim, 8, 876), (ddim, 9, 889), (euler, 4, 751), (ancestral, 2, 501)],
)
def test_few_steps_that_begin_far_from_noise_are_refused_after_a_fused_lora(
    make: Callable[..., Any], steps: int, first: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """SDXL-Lightning on SDXL's own scheduler would be given pure noise as the latent of timestep 1."""
    teacher = wrapped(SD)
    teacher.train_lora(2, 2, None)
    fuse = {"path": str(teacher.save(tmp_path)), "scale": 1.0, "weight_name": None}

    def fused(**spacing: str) -> PipelineBackbone:
        pipeline = SD()
        pipeline.scheduler = make(timestep_spacing="leading", steps_offset=1)
        return wrap_pipeline(pipeline, scheduler=spacing or None, fuse_lora=fuse)

    begins = rf"begins {steps} steps? at timestep {first} of 1000.*set model.scheduler.timestep_spacing=trailing"
    with pytest.raises(UserError, match=f"model.fuse_lora: .*timestep_spacing=leading, {begins}"):
        fused().denoiser(steps, 1.0)
    assert not warnings(caplog)
    assert fused(timestep_spacing="trailing").denoiser(steps, 1.0).timesteps[0] == 999
    assert fused().denoiser(10, 1.0).timesteps[0] == 901
    pipeline = SD()  # a model that was not made for few steps draws, but badly
    pipeline.scheduler = make(timestep_spacing="leading", steps_offset=1)
    log.warn_once.cache_clear()
    for _ in range(2):
        wrap_pipeline(pipeline).denoiser(steps, 1.0)
    (text,) = warnings(caplog)
    assert re.search(begins, text)


def test_the_first_timesteps_of_usual_schedules_are_not_remarked_on(caplog: pytest.LogCaptureFixture) -> None:
    for make, scheduler in ((SD, ddim), (SD, euler), (XL, ancestral), (latent_consistency, LCMScheduler)):
        pipeline = make()
        pipeline.scheduler = scheduler()
        for steps in (1, 2, 4, 8):
            wrap_pipeline(pipeline).denoiser(steps, 1.0)
    assert not warnings(caplog)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"name": "DDIMSchedule"}, "diffusers has no scheduler 'DDIMSchedule'.*EulerDiscreteScheduler"),
        ({"name": "DiffusionPipeline"}, "no scheduler"),
        ({"spacing": "trailing"}, "no setting 'spacing'.*timestep_spacing"),
        ({"beta_schedule": "straight"}, "rejects these settings.*straight"),
    ],
)
def test_an_unknown_scheduler_or_setting_is_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        wrap_pipeline(SD(), scheduler=settings)
