"""`noised` puts clean latents at the level of noise from which the next step of the sampler starts."""

from __future__ import annotations

import pytest
import torch

from sdpo.method.denoisers import Consistency, Denoiser, RectifiedFlow, TrigFlow

_SIGMAS = torch.tensor([1.0, 0.9, 0.75, 0.5, 0.0])
_ALPHAS = torch.linspace(0.999, 0.01, 1000)

# Each of these jumps to x̂ and adds fresh noise of the next step's level.
JUMPS: dict[str, Denoiser] = {
    "rectified flow": RectifiedFlow(_SIGMAS, 1000 * _SIGMAS[:-1], 1.0),
    "trigflow": TrigFlow(torch.tensor([1.5, 1.3, 0.6, 0.0]), 1.0),
    "consistency": Consistency(_ALPHAS, torch.tensor([999, 700, 400, 100])),
}


@pytest.mark.parametrize("name", JUMPS)
def test_a_step_of_fresh_noise_is_the_clean_latent_noised_to_the_next_level(name: str) -> None:
    denoiser, generator = JUMPS[name], torch.Generator().manual_seed(0)
    x, output, noise = torch.randn(3, denoiser.num_steps - 1, 4, 2, 2, generator=generator).unbind()
    steps = torch.arange(denoiser.num_steps - 1)
    transition = denoiser.transition(x, output, steps)
    following = transition.mean + transition.std[:, None, None, None] * noise
    torch.testing.assert_close(denoiser.noised(transition.x0, noise, steps + 1), following)


def test_the_first_level_of_a_flow_is_pure_noise() -> None:
    flow, noise = JUMPS["rectified flow"], torch.ones(1, 4, 2, 2)
    assert torch.equal(flow.noised(5 * noise, noise, torch.tensor([0])), noise)
