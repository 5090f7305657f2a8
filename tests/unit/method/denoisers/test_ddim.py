"""The DDIM denoiser: its schedule, its inversion of the network's output, and the moments of its transitions."""

from __future__ import annotations

import pytest
import torch
from helpers.plane_model import ALPHAS

from sdpo.method.denoisers import DDIM
from sdpo.method.denoisers.ddim import trailing_timesteps
from sdpo.method.gaussian import sample


@pytest.mark.parametrize("steps", [1, 2, 4, 8, 50, 1000])
def test_every_schedule_starts_at_the_noisiest_timestep(steps: int) -> None:
    timesteps = trailing_timesteps(steps)
    assert timesteps[0] == 999 and len(timesteps) == steps and (timesteps.diff() < 0).all()


@pytest.mark.parametrize("steps", [0, 1001])
def test_impossible_schedules_are_refused(steps: int) -> None:
    with pytest.raises(ValueError, match="num_steps"):
        trailing_timesteps(steps)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_the_true_output_gives_back_the_clean_latent(prediction: str) -> None:
    ddim = DDIM(ALPHAS, 4, prediction)  # type: ignore[arg-type]
    x0, noise = torch.randn(2, 4, 4, 8, 8).unbind(0)
    index = torch.arange(4)
    a = ALPHAS[ddim.timesteps].sqrt().float().reshape(-1, 1, 1, 1)
    s = (1 - ALPHAS[ddim.timesteps]).sqrt().float().reshape(-1, 1, 1, 1)
    output = {"epsilon": noise, "v_prediction": a * noise - s * x0, "sample": x0}[prediction]
    torch.testing.assert_close(ddim.transition(a * x0 + s * noise, output, index).x0, x0, rtol=1e-3, atol=1e-4)


def test_samples_of_a_transition_have_the_moments_that_its_log_prob_assumes() -> None:
    ddim = DDIM(ALPHAS, 4)
    x, output = torch.randn(2, 1, 1, 1, 1).unbind(0)
    step = ddim.transition(x.expand(20000, 1, 1, 1), output.expand(20000, 1, 1, 1), torch.full((20000,), 1))
    drawn = sample(step.mean, step.std, torch.randn(20000, 1, 1, 1))
    torch.testing.assert_close(drawn.mean(), step.mean[0, 0, 0, 0], atol=0.03, rtol=0)
    torch.testing.assert_close(drawn.std(), step.std[0], atol=0.03, rtol=0)


def test_the_last_step_keeps_a_small_variance() -> None:
    for steps in (1, 2, 4, 8, 50):
        assert DDIM(ALPHAS, steps).stochastic.all()
    assert not DDIM(ALPHAS, 4, eta=0.0).stochastic.any()
