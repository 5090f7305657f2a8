"""Comparison of the flow families with the pipelines' own calls."""

from __future__ import annotations

from typing import Any

import pytest
from helpers.families import check_parity, own_call, trajectories, wrapped
from helpers.flow_pipelines import FLOW_PIPELINES, flux, flux2_klein, stable_diffusion_3, z_image

from sdpo.errors import UserError
from sdpo.loop.policy import Policy


def karras() -> Any:
    return stable_diffusion_3(use_dynamic_shifting=True, use_karras_sigmas=True)


RELEASED = {
    "SD 3.5 large turbo": (stable_diffusion_3, 1.0),
    "SD 3.5 medium, guided": (stable_diffusion_3, 4.0),
    "SD 3, dynamic shift": (karras, 1.0),
    "FLUX.1-schnell": (flux, 1.0),
    "FLUX.1-schnell, guided": (flux, 2.0),
    "FLUX.1-dev": (lambda: flux(True, shift=3.0, use_dynamic_shifting=True), 3.5),
    "Z-Image-Turbo": (z_image, 1.0),
    "Z-Image, guided": (z_image, 3.0),
    "FLUX.2-klein": (flux2_klein, 1.0),
    "FLUX.2-klein-base": (lambda: flux2_klein(is_distilled=False), 4.0),
}


@pytest.mark.parametrize("model", RELEASED)
def test_without_noise_latents_equal_the_pipelines(model: str) -> None:
    make, guidance = RELEASED[model]
    check_parity(model, wrapped(make), 0.0, guidance)


def test_with_equal_noise_latents_of_sana_sprint_equal_the_pipelines(monkeypatch: pytest.MonkeyPatch) -> None:
    check_parity("SANA-Sprint", wrapped(FLOW_PIPELINES["SanaSprintPipeline"]), 1.0, 4.5, monkeypatch)


# -- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FLOW_PIPELINES)
def test_another_scheduler_is_refused(name: str) -> None:
    from diffusers import DDIMScheduler

    backbone = wrapped(FLOW_PIPELINES[name])
    backbone.pipeline.scheduler = DDIMScheduler()
    with pytest.raises(UserError, match="DDIMScheduler"):
        backbone.denoiser(4, 0.7)


def test_a_schedule_with_a_terminal_shift() -> None:
    backbone = wrapped(stable_diffusion_3, scheduler={"shift_terminal": 0.25})
    assert backbone.denoiser(4, 1.0).timesteps[-1].item() == pytest.approx(250.0)
    ours = trajectories(Policy(backbone), 4, eta=0.0)
    theirs = own_call(backbone, ours.states[:, 0, 0], 4, 1.0, "latent")
    assert (ours.states[:, 0, -1] - theirs).abs().max() <= 1e-4
    with pytest.raises(UserError, match="use 2 steps or more"):
        backbone.denoiser(1, 0.7)


def test_a_distilled_klein_rejects_guidance() -> None:
    with pytest.raises(UserError, match="without guidance"):
        Policy(wrapped(flux2_klein), 2.0)


def test_sana_sprint_rejects_more_steps_than_it_was_trained_for() -> None:
    with pytest.raises(UserError, match="1001"):
        wrapped(FLOW_PIPELINES["SanaSprintPipeline"]).denoiser(1001, 1.0)
