"""Properties of every family: transitions and log-probabilities, trained parameters, freed text encoders."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import LCMScheduler
from helpers.families import PROMPTS, replayed, trajectories, wrapped
from helpers.flow_pipelines import FLOW_PIPELINES
from helpers.pipelines import PIPELINES, latent_consistency, stable_diffusion
from torch import Tensor, nn

from sdpo.backbones import PipelineBackbone
from sdpo.errors import UserError
from sdpo.loop.policy import Policy, PromptEmbeddings
from sdpo.loop.rollout import rollout
from sdpo.prompts import Prompt


def on_lcm() -> Any:
    pipeline = stable_diffusion()
    pipeline.scheduler = LCMScheduler()
    return pipeline


FAMILIES = PIPELINES | {"StableDiffusionPipeline on LCM": on_lcm}
UNETS = [name for name in FAMILIES if name not in FLOW_PIPELINES]


def eta_of(name: str) -> float:
    """The η of a family's steps; consistency models have transitions for η = 1 only."""
    return 1.0 if FAMILIES[name] in (latent_consistency, on_lcm) else 0.7


def guided(backbone: PipelineBackbone, dtype: torch.dtype = torch.float32) -> Policy:
    return Policy(backbone, 2.0 if backbone.guidance == "embedded" else 1.0, dtype)


# -- transitions and their log-probabilities -------------------------------------------------------------------------

MIXED = [(0, 0, 0), (0, 1, 2), (1, 0, 1), (1, 1, 3)]  # four latents, as in sampling, but each at its own step


@pytest.mark.parametrize("name", FAMILIES)
def test_log_ratio_on_policy(name: str) -> None:
    backbone, eta = wrapped(FAMILIES[name]), eta_of(name)
    backbone.train_lora(4, 4, None)
    policy = guided(backbone)
    data = trajectories(policy, 4, eta, branches=2)
    old = torch.stack([data.log_prob[row] for row in MIXED])
    now = replayed(policy, data, eta, MIXED)
    assert now.requires_grad
    assert torch.equal(now, old)
    assert old.isfinite().all() and old[:3].all()
    assert bool(old[3]) == backbone.denoiser(4, eta).ends_random
    for row, one in zip(MIXED, old, strict=True):
        assert (replayed(policy, data, eta, [row])[0] - one).abs() <= 1e-5, row


@pytest.mark.parametrize("name", UNETS)
def test_log_ratio_on_policy_under_guidance(name: str) -> None:
    backbone, eta = wrapped(FAMILIES[name]), eta_of(name)
    backbone.train_lora(4, 4, None)
    policy = Policy(backbone, 4.0)
    data = trajectories(policy, 4, eta, branches=2)
    old = torch.stack([data.log_prob[row] for row in MIXED])
    assert torch.equal(replayed(policy, data, eta, MIXED), old)
    assert (torch.cat([replayed(policy, data, eta, [row]) for row in MIXED]) - old).abs().max() <= 1e-5


@pytest.mark.parametrize("name", FAMILIES)
def test_log_ratio_on_policy_in_bfloat16(name: str) -> None:
    """The log-ratio is exactly 0 in equal batches. Otherwise rounding counts in units of the step's std, which is
    smallest in SD 3, whose own schedule ends at σ = 0.0089."""
    backbone, eta = wrapped(lambda: FAMILIES[name]().to(torch.bfloat16)), eta_of(name)
    backbone.train_lora(4, 4, None)
    half = guided(backbone, torch.bfloat16)
    data = trajectories(half, 4, eta, branches=2)
    old = torch.stack([data.log_prob[row] for row in MIXED])
    assert torch.equal(replayed(half, data, eta, MIXED), old)
    alone = torch.cat([replayed(half, data, eta, [row]) for row in MIXED])
    assert (alone - old).abs().max() <= 0.02


@pytest.mark.parametrize(("name", "form"), [
    *((name, "preserving") for name in FAMILIES),
    *((name, form) for form in ("flow_grpo", "flow_sde") for name in FLOW_PIPELINES if name != "SanaSprintPipeline"),
])  # fmt: skip
def test_samples_have_the_mean_and_std_of_their_log_prob(name: str, form: str) -> None:
    backbone, eta = wrapped(FAMILIES[name], noise_form=form), eta_of(name)
    policy = Policy(backbone)
    data = trajectories(policy, 3, eta, branches=16)
    denoiser = backbone.denoiser(3, eta)
    ends_random = name in ("StableDiffusionPipeline", "StableDiffusionXLPipeline") or form == "flow_grpo"
    assert denoiser.stochastic.tolist() == [True, True, ends_random]
    conditioning = PromptEmbeddings(backbone, PROMPTS).take(torch.tensor([0] * 16 + [1] * 16))
    for step in range(2 + ends_random):
        before, after = (data.states[:, :, i].flatten(0, 1) for i in (step, step + 1))
        with torch.no_grad():
            transition = policy.transition(denoiser, before, torch.full((32,), step), conditioning)
        z = (after - transition.mean) / transition.std.view(-1, 1, 1, 1)
        assert abs(z.mean().item()) < 4 / math.sqrt(z.numel())
        assert abs(z.std().item() - 1) < 4 / math.sqrt(2 * z.numel())
        expected = -transition.std[0].log().item() - 0.5 * math.log(2 * math.pi) - 0.5
        assert data.log_prob[:, :, step].mean().item() == pytest.approx(expected, abs=2 / math.sqrt(z.numel()))
    assert ends_random or not data.log_prob[:, :, 2].any()


# -- what is trained -------------------------------------------------------------------------------------------------

OWN = {"to_q", "to_k", "to_v", "to_out.0"}
JOINT = OWN | {"add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"}
TARGETS = {
    "StableDiffusion3Pipeline": JOINT,
    "FluxPipeline": JOINT,
    "Flux2KleinPipeline": JOINT | {"to_qkv_mlp_proj"},
}


@pytest.mark.parametrize("name", FAMILIES)
def test_lora_is_on_the_attention_and_checkpointed_activations_give_its_gradients(name: str) -> None:
    backbone, eta = wrapped(FAMILIES[name]), eta_of(name)
    backbone.train_lora(4, 4, None)
    parameters = backbone.trainable_parameters()
    targets = TARGETS.get(name, OWN)
    for target in targets:
        assert any(f".{target}.lora_A." in parameter for parameter in parameters), target
    assert all(any(f".{t}.lora_" in parameter for t in targets) for parameter in parameters)
    assert any(type(m).__name__ in (backbone.repeated_blocks or backbone.network_module._repeated_blocks)
               for m in backbone.network_module.modules())  # fmt: skip
    policy = guided(backbone)
    data = trajectories(policy, 4, eta, branches=2)
    calls: list[str] = []  # forward calls of one module inside a block
    inside = next(m for n, m in backbone.network_module.named_modules() if n.endswith(".to_q"))
    inside.register_forward_hook(lambda *_: calls.append("forward"))

    def gradients() -> list[Tensor]:
        return list(torch.autograd.grad(replayed(policy, data, eta, MIXED).sum(), list(parameters.values())))

    plain = gradients()
    backbone.checkpoint_activations()
    recomputed = gradients()
    assert len(calls) == 1 + 2
    assert any(g.any() for g in plain)
    for one, other in zip(plain, recomputed, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("name", PIPELINES)
def test_training_starts_from_a_lora(name: str, tmp_path: Path) -> None:
    first = wrapped(PIPELINES[name])
    first.train_lora(2, 4, None)
    for parameter in first.trainable_parameters().values():
        nn.init.normal_(parameter)
    first.save(tmp_path)
    second = wrapped(PIPELINES[name])
    second.train_lora(2, 4, None, str(tmp_path / "lora"))
    before, after = first.trainable_parameters(), second.trainable_parameters()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[n], after[n]) and after[n].requires_grad for n in before)
    ours, theirs = (trajectories(guided(b), 2, eta_of(name)).states for b in (first, second))
    assert torch.equal(ours, theirs)
    with second.reference():
        base = trajectories(guided(second), 2, eta_of(name)).states
    untouched = trajectories(guided(wrapped(PIPELINES[name])), 2, eta_of(name)).states
    assert torch.equal(base, untouched) and not torch.equal(base, ours)


# -- text encoders ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PIPELINES)
def test_text_encoders_can_be_freed_once_prompts_are_encoded(name: str) -> None:
    backbone, eta = wrapped(PIPELINES[name]), eta_of(name)
    embeddings = PromptEmbeddings(backbone, PROMPTS)
    backbone.release_text_encoders("cpu")
    again, cached = backbone.encode(PROMPTS), embeddings(PROMPTS)
    assert again.keys() == cached.keys() and all(torch.equal(again[key], cached[key]) for key in cached)
    backbone.release_text_encoders("free")
    assert not backbone.text_modules()
    parts = rollout(guided(backbone), backbone.denoiser(2, eta), embeddings, [Prompt(p) for p in PROMPTS], [0, 1],
                    seed=0, epoch=0, branches=1, micro_batch=2)  # fmt: skip
    assert all(part.states.isfinite().all() for part in parts)
    with pytest.raises(UserError, match="text encoders were freed"):
        backbone.encode(["a fox"])
