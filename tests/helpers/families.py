"""Wrapped models of all families, their trajectories, and the pipelines' own calls beside them."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from helpers.flow_pipelines import SIDE
from sdpo.backbones import PipelineBackbone, wrap_pipeline
from sdpo.loop.policy import Policy, PromptEmbeddings
from sdpo.loop.rollout import rollout
from sdpo.method import gaussian, seeds
from sdpo.method.types import Trajectories
from sdpo.prompts import Prompt

PROMPTS = ["a cat", "a dog on the moon"]
STEPS = (1, 2, 4, 8)


def wrapped(make: Callable[[], Any], **changes: Any) -> PipelineBackbone:
    """A backbone of images of SIDE pixels; its weights are always the same."""
    torch.manual_seed(0)
    return wrap_pipeline(make(), size=(SIDE, SIDE), **changes)


def trajectories(policy: Policy, steps: int, eta: float, branches: int = 1, micro_batch: int = 2) -> Trajectories:
    """Trajectories of the two prompts, with the noise of seed 0, epoch 0 and samples 0 and 1."""
    denoiser = policy.backbone.denoiser(steps, eta)
    parts = rollout(policy, denoiser, PromptEmbeddings(policy.backbone, PROMPTS), [Prompt(p) for p in PROMPTS],
                    [0, 1], seed=0, epoch=0, branches=branches, micro_batch=micro_batch)  # fmt: skip
    (whole,) = parts if micro_batch == 2 else (Trajectories.collect(parts, 2),)
    return whole


def replayed(policy: Policy, data: Trajectories, eta: float, rows: list[tuple[int, int, int]]) -> Tensor:
    """Log-probabilities of some (group, branch, step), in one network call with gradient, as the update makes it."""
    denoiser = policy.backbone.denoiser(data.num_steps, eta)
    group, branch, step = (torch.tensor(index) for index in zip(*rows, strict=True))
    conditioning = PromptEmbeddings(policy.backbone, PROMPTS).take(group)
    transition = policy.transition(denoiser, data.states[group, branch, step], step, conditioning)
    return gaussian.log_prob(data.states[group, branch, step + 1], transition.mean, transition.std)


def own_call(
    backbone: PipelineBackbone, start: Tensor, steps: int, guidance: float, output: str, **extra: Any
) -> Tensor:
    """The pipeline's own result for standard normal noise: images, or latents as the loop holds them."""
    pipeline = backbone.pipeline
    name = type(pipeline).__name__
    if name == "FluxPipeline":
        start = pipeline._pack_latents(start, *start.shape)
    arguments = backbone.call_arguments(steps, guidance) | extra
    if "negative_prompt" in arguments:
        arguments["negative_prompt"] = [""] * len(start)
    result: Tensor = pipeline(prompt=list(PROMPTS), latents=start, num_inference_steps=steps, height=SIDE, width=SIDE,
                              output_type=output, **arguments).images  # fmt: skip
    if output == "latent" and name == "FluxPipeline":
        return pipeline._unpack_latents(result, SIDE, SIDE, pipeline.vae_scale_factor)
    if output == "latent" and name == "Flux2KleinPipeline":
        bn = pipeline.vae.bn
        std = (bn.running_var + pipeline.vae.config.batch_norm_eps).sqrt()
        return (functional.pixel_unshuffle(result, 2) - bn.running_mean.view(1, -1, 1, 1)) / std.view(1, -1, 1, 1)
    return result


def hand_over_noise(monkeypatch: pytest.MonkeyPatch, scheduler: Any, shape: tuple[int, ...]) -> None:
    """Let a scheduler draw what `trajectories` drew at each step."""
    keys = [[(0, 0, i, f"step {step}") for i in range(2)] for step in range(max(STEPS))]
    drawn = (seeds.normal((1, *shape), key)[:, 0] for key in keys)
    module = importlib.import_module(type(scheduler).__module__)
    monkeypatch.setattr(module, "randn_tensor", lambda *_, **__: next(drawn))


def check_parity(
    label: str,
    backbone: PipelineBackbone,
    eta: float,
    guidance: float = 1.0,
    noise: pytest.MonkeyPatch | None = None,
    call: dict[str, Any] | None = None,
    noisy_end: bool = False,
) -> None:
    """Latents of our sampler and of the pipeline's own call are within 1e-4 at every number of steps, images too.

    Args:
        label: printed with the differences.
        backbone: sampled by both.
        eta: η of our sampler.
        guidance: of both.
        noise: hands our noise to the pipeline's scheduler; None where neither draws any.
        call: further arguments of the pipeline's call.
        noisy_end: the pipeline's latents keep the last step's noise; else they are its x̂.
    """
    policy = Policy(backbone, guidance)
    differences = []
    for steps in STEPS:
        ours = trajectories(policy, steps, eta)
        denoiser = backbone.denoiser(steps, eta)
        assert ours.x0 is not None
        last = ours.x0[:, 0, -1] if denoiser.ends_random and not noisy_end else ours.states[:, 0, -1]
        start = ours.states[:, 0, 0] / denoiser.initial_scale

        def theirs(output: str, start: Tensor = start, steps: int = steps) -> Tensor:
            if noise is not None:
                hand_over_noise(noise, backbone.pipeline.scheduler, backbone.latent_shape)
            return own_call(backbone, start, steps, guidance, output, **(call or {}))

        latents = theirs("latent")
        assert latents.std() > 0.1, "a comparison of nothing"
        differences.append((last - latents).abs().max().item())
    print(f"{label}: latents differ by {', '.join(f'{d:.1e}' for d in differences)} at {STEPS} steps")
    assert max(differences) <= 1e-4
    assert (backbone.decode(last) - theirs("pt")).abs().max() <= 1e-4
