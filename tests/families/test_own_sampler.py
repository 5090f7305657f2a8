"""The images of an evaluation by the model's own sampler are those that its users get from the pipeline's own call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, EulerAncestralDiscreteScheduler, EulerDiscreteScheduler, LCMScheduler
from helpers.families import PROMPTS, wrapped
from helpers.flow_pipelines import FLOW_PIPELINES
from helpers.pipelines import PIPELINES, latent_consistency, stable_diffusion, stable_diffusion_xl

from sdpo.backbones import PipelineBackbone
from sdpo.errors import UserError
from sdpo.loop.policy import Policy, PromptEmbeddings
from sdpo.loop.rollout import final_images

SEEDS = [5, 2**32 - 1]


def scheduled(make: Callable[[], Any], scheduler: type, **settings: Any) -> Callable[[], Any]:
    def pipeline() -> Any:
        made = make()
        made.scheduler = scheduler.from_config(made.scheduler.config, **settings)
        return made

    return pipeline


TRAILING = {"timestep_spacing": "trailing"}
# Each pipeline with its η and guidance scale.
CASES: dict[str, tuple[Callable[[], Any], float, float]] = {
    "SD on DDIM": (scheduled(stable_diffusion, DDIMScheduler, **TRAILING), 0.0, 1.0),
    "SD on DDIM, leading, guided": (scheduled(stable_diffusion, DDIMScheduler, timestep_spacing="leading"), 0.0, 3.0),
    "SD-Turbo on Euler": (scheduled(stable_diffusion, EulerDiscreteScheduler, **TRAILING), 0.0, 1.0),
    "SDXL-Turbo on EulerAncestral": (scheduled(stable_diffusion_xl, EulerAncestralDiscreteScheduler, **TRAILING), 1, 1),
    "SD on LCM": (scheduled(stable_diffusion, LCMScheduler), 1.0, 1.0),
    "LCM": (latent_consistency, 1.0, 3.0),
    **{name: (make, 1.0 if name == "SanaSprintPipeline" else 0.0, 1.0) for name, make in FLOW_PIPELINES.items()},
}


def drawn(backbone: PipelineBackbone, steps: int, guidance: float) -> torch.Tensor:
    policy = Policy(backbone, guidance, torch.float32)
    embeddings = PromptEmbeddings(backbone, PROMPTS)
    parts = final_images(policy, backbone.own_sampler(steps), embeddings, PROMPTS, SEEDS, micro_batch=2)
    return torch.cat(list(parts))


def called(backbone: PipelineBackbone, steps: int, guidance: float) -> torch.Tensor:
    images = backbone.generate(PROMPTS, steps, SEEDS, guidance)
    return torch.stack([torch.from_numpy(np.array(image)) for image in images]).permute(0, 3, 1, 2) / 255


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
@pytest.mark.parametrize("name", CASES)
def test_images_equal_those_of_the_pipelines_own_call(name: str, steps: int) -> None:
    make, eta, guidance = CASES[name]
    backbone = wrapped(make)
    assert backbone.own_eta == eta
    ours, theirs = drawn(backbone, steps, guidance), called(backbone, steps, guidance)
    assert (theirs[0] - theirs[1]).abs().max() > 0.05, "a comparison of nothing"
    assert (ours - theirs).abs().max() <= 2 / 255


@pytest.mark.parametrize("make", [stable_diffusion, PIPELINES["ZImagePipeline"]])
def test_noise_is_drawn_in_the_type_in_which_the_pipeline_draws_it(make: Callable[[], Any]) -> None:
    """In bfloat16 a generator gives other numbers, not rounded ones, so that another type would be another image."""
    backbone = wrapped(lambda: make().to(torch.bfloat16))
    seen: list[torch.Tensor] = []
    backbone.network_module.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    backbone.generate(PROMPTS[:1], 1, [3], 1.0)
    first = seen[0]
    latents = torch.stack(list(first)).squeeze(2) if isinstance(first, list) else first
    start = backbone.own_noise(3, 1)[0] * backbone.own_sampler(1).initial_scale
    assert (latents.float() - start).abs().max() <= 0.02 * start.abs().max()


def test_noise_from_torchs_global_generator_is_refused() -> None:
    backbone = wrapped(PIPELINES["StableDiffusion3Pipeline"])
    backbone.pipeline.scheduler.register_to_config(stochastic_sampling=True)
    with pytest.raises(UserError, match=r"set evaluate\.eta"):
        backbone.own_sampler(2)
