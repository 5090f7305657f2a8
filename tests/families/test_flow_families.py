"""The flow families against the pipelines' own calls, and their transitions against their log-probabilities."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from flow_pipelines import FLOW_PIPELINES, SIDE, flux, flux2_klein, stable_diffusion_3, z_image
from torch import Tensor
from torch.nn import functional

from sdpo import gaussian, seeds
from sdpo.backbones import PipelineBackbone, wrap_pipeline
from sdpo.errors import UserError
from sdpo.policy import Policy, PromptEmbeddings
from sdpo.prompts import Prompt
from sdpo.sampler import rollout
from sdpo.types import Trajectories

PROMPTS = ["a cat", "a dog on the moon"]


def wrapped(make: Callable[[], Any]) -> PipelineBackbone:
    torch.manual_seed(0)
    return wrap_pipeline(make(), size=(SIDE, SIDE))


def trajectories(policy: Policy, steps: int, eta: float, branches: int = 1, micro_batch: int = 2) -> Trajectories:
    """Of the two prompts; the noise comes from seed 0, epoch 0 and samples 0 and 1."""
    denoiser = policy.backbone.denoiser(steps, eta)
    parts = rollout(policy, denoiser, PromptEmbeddings(policy.backbone, PROMPTS), [Prompt(p) for p in PROMPTS],
                    [0, 1], seed=0, epoch=0, branches=branches, micro_batch=micro_batch)  # fmt: skip
    (whole,) = parts if micro_batch == 2 else (Trajectories.collect(parts, 2),)
    return whole


# -- the pipelines' own calls ---------------------------------------------------------------------------------------


def own_call(backbone: PipelineBackbone, start: Tensor, steps: int, guidance: float, output: str) -> Tensor:
    """What the pipeline itself makes of the latents."""
    pipeline = backbone.pipeline
    if type(pipeline).__name__ == "FluxPipeline":
        start = pipeline._pack_latents(start, *start.shape)
    arguments = backbone.call_arguments(steps, guidance)
    if "negative_prompt" in arguments:
        arguments["negative_prompt"] = [""] * len(start)
    return pipeline(prompt=list(PROMPTS), latents=start, num_inference_steps=steps, height=SIDE, width=SIDE,
                    output_type=output, **arguments).images  # fmt: skip


def in_the_loops_form(backbone: PipelineBackbone, latents: Tensor) -> Tensor:
    """The latents that a pipeline returns, as the loop holds them."""
    pipeline = backbone.pipeline
    if type(pipeline).__name__ == "FluxPipeline":
        return pipeline._unpack_latents(latents, SIDE, SIDE, pipeline.vae_scale_factor)
    if type(pipeline).__name__ == "Flux2KleinPipeline":
        bn = pipeline.vae.bn
        std = (bn.running_var + pipeline.vae.config.batch_norm_eps).sqrt()
        return (functional.pixel_unshuffle(latents, 2) - bn.running_mean.view(1, -1, 1, 1)) / std.view(1, -1, 1, 1)
    return latents


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
def test_without_noise_the_sampler_is_the_pipelines(model: str) -> None:
    make, guidance = RELEASED[model]
    backbone = wrapped(make)
    policy = Policy(backbone, guidance)
    for steps in (1, 2, 4, 8):
        ours = trajectories(policy, steps, eta=0.0)
        start = ours.states[:, 0, 0]
        theirs = in_the_loops_form(backbone, own_call(backbone, start, steps, guidance, "latent"))
        difference = (ours.states[:, 0, -1] - theirs).abs().max().item()
        print(f"{model}, {steps} steps: latents differ by {difference:.1e}")
        assert difference <= 1e-4
        assert ours.x0 is not None
        torch.testing.assert_close(ours.x0[:, 0, -1], ours.states[:, 0, -1], atol=1e-5, rtol=0)
    image = own_call(backbone, start, 8, guidance, "pt")
    assert (backbone.decode(ours.x0[:, 0, -1]) - image).abs().max() <= 1e-4


def test_with_the_same_noise_sana_sprint_is_the_pipelines(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = wrapped(FLOW_PIPELINES["SanaSprintPipeline"])
    policy = Policy(backbone, 4.5)
    shape = (1, *backbone.latent_shape)

    def same_noise() -> None:
        drawn = (seeds.normal(shape, [(0, 0, i, f"step {step}") for i in range(2)])[:, 0] for step in range(8))
        monkeypatch.setattr("diffusers.schedulers.scheduling_scm.randn_tensor", lambda *_, **__: next(drawn))

    for steps in (1, 2, 4, 8):
        ours = trajectories(policy, steps, eta=1.0)
        same_noise()
        theirs = own_call(backbone, ours.states[:, 0, 0], steps, 4.5, "latent")
        difference = (ours.states[:, 0, -1] - theirs).abs().max().item()
        print(f"SANA-Sprint, {steps} steps: latents differ by {difference:.1e}")
        assert difference <= 1e-4
    same_noise()
    image = own_call(backbone, ours.states[:, 0, 0], 8, 4.5, "pt")
    assert ours.x0 is not None
    assert (backbone.decode(ours.x0[:, 0, -1]) - image).abs().max() <= 1e-4


# -- transitions and their log-probabilities -------------------------------------------------------------------------


def replayed(policy: Policy, data: Trajectories, rows: list[tuple[int, int, int]]) -> Tensor:
    """Log-probabilities of some (group, branch, step), in one network call with gradient, as the update makes it."""
    denoiser = policy.backbone.denoiser(data.num_steps, 0.7)
    group, branch, step = (torch.tensor(index) for index in zip(*rows, strict=True))
    conditioning = PromptEmbeddings(policy.backbone, PROMPTS).take(group)
    transition = policy.transition(denoiser, data.states[group, branch, step], step, conditioning)
    return gaussian.log_prob(data.states[group, branch, step + 1], transition.mean, transition.std)


MIXED = [(0, 0, 0), (0, 1, 2), (1, 0, 1), (1, 1, 3)]  # four latents, as in sampling, but each at its own step


@pytest.mark.parametrize("name", FLOW_PIPELINES)
def test_log_ratio_on_policy(name: str) -> None:
    backbone = wrapped(FLOW_PIPELINES[name])
    backbone.train_lora(4, 4, None)
    policy = Policy(backbone, 2.0 if backbone.guidance == "embedded" else 1.0)
    data = trajectories(policy, 4, eta=0.7, branches=2)
    old = torch.stack([data.log_prob[row] for row in MIXED])
    now = replayed(policy, data, MIXED)
    assert now.requires_grad
    assert torch.equal(now, old)
    assert old[:3].isfinite().all() and old[3] == 0
    for row, one in zip(MIXED, old, strict=True):
        deviation = (replayed(policy, data, [row])[0] - one).abs().item()
        print(f"{name}, another batch size: log-ratio {deviation:.1e}")
        assert deviation <= 1e-5


@pytest.mark.parametrize("name", FLOW_PIPELINES)
def test_log_ratio_on_policy_in_bfloat16(name: str) -> None:
    """Exactly 0 where the batches are the same. Elsewhere rounding counts in units of the step's std, which is least
    in SD 3: its own schedule ends at σ = 0.0089."""
    backbone = wrapped(lambda: FLOW_PIPELINES[name]().to(torch.bfloat16))
    backbone.train_lora(4, 4, None)
    half = Policy(backbone, 2.0 if backbone.guidance == "embedded" else 1.0, torch.bfloat16)
    data = trajectories(half, 4, eta=0.7, branches=2)
    old = torch.stack([data.log_prob[row] for row in MIXED])
    assert torch.equal(replayed(half, data, MIXED), old)
    alone = torch.cat([replayed(half, data, [row]) for row in MIXED])
    std = half.backbone.denoiser(4, 0.7).transition(*[torch.zeros(4, *backbone.latent_shape)] * 2, torch.arange(4)).std
    for row, deviation in zip(MIXED, (alone - old).abs().tolist(), strict=True):
        print(f"{name}, bfloat16, another batch size: log-ratio {deviation:.1e} where std is {std[row[2]]:.4f}")
    assert (alone - old).abs().max() <= 0.02


@pytest.mark.parametrize(
    ("name", "form"),
    [*((name, "preserving") for name in FLOW_PIPELINES)]
    + [(name, "flow_grpo") for name in FLOW_PIPELINES if name != "SanaSprintPipeline"],
)
def test_samples_have_the_mean_and_std_of_their_log_prob(name: str, form: str) -> None:
    backbone = wrapped(FLOW_PIPELINES[name])
    assert form in backbone.noise_forms
    backbone.noise_form = form  # type: ignore[assignment]
    policy = Policy(backbone)
    data = trajectories(policy, 3, eta=0.7, branches=16)
    denoiser = backbone.denoiser(3, 0.7)
    assert denoiser.stochastic.tolist() == [True, True, False]
    conditioning = PromptEmbeddings(backbone, PROMPTS).take(torch.tensor([0] * 16 + [1] * 16))
    for step in (0, 1):
        before, after = (data.states[:, :, i].flatten(0, 1) for i in (step, step + 1))
        with torch.no_grad():
            transition = policy.transition(denoiser, before, torch.full((32,), step), conditioning)
        z = (after - transition.mean) / transition.std.view(-1, 1, 1, 1)
        assert abs(z.mean().item()) < 4 / math.sqrt(z.numel())
        assert abs(z.std().item() - 1) < 4 / math.sqrt(2 * z.numel())
        expected = -transition.std[0].log().item() - 0.5 * math.log(2 * math.pi) - 0.5
        assert data.log_prob[:, :, step].mean().item() == pytest.approx(expected, abs=2 / math.sqrt(z.numel()))
    assert not data.log_prob[:, :, 2].any()


# -- what is trained -------------------------------------------------------------------------------------------------

OWN = {"to_q", "to_k", "to_v", "to_out.0"}
JOINT = OWN | {"add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"}
TARGETS = {
    "StableDiffusion3Pipeline": JOINT,
    "FluxPipeline": JOINT,
    "ZImagePipeline": OWN,
    "SanaSprintPipeline": OWN,
    "Flux2KleinPipeline": JOINT | {"to_qkv_mlp_proj"},
}


@pytest.mark.parametrize("name", FLOW_PIPELINES)
def test_lora_is_on_the_attention_and_checkpointed_activations_give_its_gradients(name: str) -> None:
    backbone = wrapped(FLOW_PIPELINES[name])
    backbone.train_lora(4, 4, None)
    parameters = backbone.trainable_parameters()
    for target in TARGETS[name]:
        assert any(f".{target}.lora_A." in parameter for parameter in parameters), target
    assert all(any(f".{t}.lora_" in parameter for t in TARGETS[name]) for parameter in parameters)
    assert any(type(m).__name__ in (backbone.repeated_blocks or backbone.network_module._repeated_blocks)
               for m in backbone.network_module.modules())  # fmt: skip
    policy = Policy(backbone)
    data = trajectories(policy, 4, eta=0.7, branches=2)

    def gradients() -> list[Tensor]:
        return list(torch.autograd.grad(replayed(policy, data, MIXED).sum(), list(parameters.values())))

    plain = gradients()
    backbone.checkpoint_activations()
    recomputed = gradients()
    assert any(g.any() for g in plain)
    for one, other in zip(plain, recomputed, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("name", FLOW_PIPELINES)
def test_text_encoders_can_be_freed_once_prompts_are_encoded(name: str) -> None:
    backbone = wrapped(FLOW_PIPELINES[name])
    embeddings = PromptEmbeddings(backbone, PROMPTS)
    backbone.release_text_encoders("free")
    parts = rollout(Policy(backbone), backbone.denoiser(2, 0.7), embeddings, [Prompt(p) for p in PROMPTS], [0, 1],
                    seed=0, epoch=0, branches=1, micro_batch=2)  # fmt: skip
    assert all(part.states.isfinite().all() for part in parts)
    with pytest.raises(UserError, match="text encoders were freed"):
        backbone.encode(["a fox"])


# -- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FLOW_PIPELINES)
def test_another_scheduler_is_refused(name: str) -> None:
    from diffusers import DDIMScheduler

    backbone = wrapped(FLOW_PIPELINES[name])
    backbone.pipeline.scheduler = DDIMScheduler()
    with pytest.raises(UserError, match="DDIMScheduler"):
        backbone.denoiser(4, 0.7)


def test_a_schedule_with_a_last_sigma_of_its_own() -> None:
    backbone = wrap_pipeline(stable_diffusion_3(), size=(SIDE, SIDE), scheduler={"shift_terminal": 0.25})
    assert backbone.denoiser(4, 1.0).timesteps[-1].item() == pytest.approx(250.0)
    ours = trajectories(Policy(backbone), 4, eta=0.0)
    theirs = own_call(backbone, ours.states[:, 0, 0], 4, 1.0, "latent")
    assert (ours.states[:, 0, -1] - theirs).abs().max() <= 1e-4
    with pytest.raises(UserError, match="use 2 steps or more"):
        backbone.denoiser(1, 0.7)


def test_a_distilled_klein_takes_no_guidance() -> None:
    with pytest.raises(UserError, match="without guidance"):
        Policy(wrapped(flux2_klein), 2.0)


def test_sana_sprint_has_as_many_steps_as_it_was_trained_for() -> None:
    with pytest.raises(UserError, match="1001"):
        wrapped(FLOW_PIPELINES["SanaSprintPipeline"]).denoiser(1001, 1.0)
