"""The baselines against numbers that `make_baselines.py` computed with NumPy alone; its docstring has the equations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from golden import make_baselines as stored
from helpers.plane_model import sample
from helpers.updates import plane_update, run_update, shift
from torch import Tensor

from sdpo.loop.step_batch import StepEvaluator
from sdpo.method import gaussian
from sdpo.method.advantages import Normalizer
from sdpo.method.algorithms import D3PO, DDPO, GRPO, PRDP, REBEL
from sdpo.method.denoisers import RectifiedFlow
from sdpo.method.types import LossOutput, StepBatch, TrajectoryBatch

NUMBERS: dict[str, Any] = json.loads(Path(__file__).with_name("baselines.json").read_text())


def number(name: str) -> Tensor:
    return torch.tensor(NUMBERS[name], dtype=torch.float64)


def agrees(output: LossOutput, variable: Tensor, name: str) -> None:
    assert output.loss.item() == pytest.approx(NUMBERS[name]["loss"], rel=1e-10)
    (gradient,) = torch.autograd.grad(output.loss, variable)
    torch.testing.assert_close(gradient, torch.tensor(NUMBERS[name]["gradient"], dtype=torch.float64))
    assert (gradient == 0).any() and (gradient != 0).any(), "clipping acts in some places and not in others"


def test_d3po_with_its_ratio_clamp() -> None:
    new = number("new")[..., 0].requires_grad_()
    batch = StepBatch(
        log_prob=new,
        old_log_prob=number("old")[..., 0],
        advantage=number("rewards"),
        step_index=torch.zeros(5, dtype=torch.long),
        mask=torch.ones(5, dtype=torch.float64),
        reference_log_prob=number("reference")[..., 0],
    )
    assert (stored.BETA, stored.D3PO_CLIP) == (D3PO().beta, D3PO().clip_range), "the published setting"
    output = D3PO().loss(batch)
    agrees(output, new, "d3po")
    outside = (new - batch.reference_log_prob).exp().sub(1).abs() > 0.1  # type: ignore[operator]
    assert output.metrics["clip_fraction"].item() == pytest.approx(outside.double().mean().item())


def test_the_gradient_of_accumulated_steps() -> None:
    """One optimizer step after all steps: the mean of their losses, each on its own step of the samples."""
    new, old, advantage = (number(name) for name in ("new", "old", "advantage"))
    new.requires_grad_()
    steps = new.shape[2]
    total: Any = 0
    for step in range(steps):
        index, mask = torch.full((5,), step), torch.ones(5, dtype=torch.float64)
        batch = StepBatch(new[..., step], old[..., step], advantage[..., step], index, mask)
        total = total + DDPO(clip_range=stored.DDPO_CLIP).loss(batch).loss / steps
    agrees(LossOutput(total), new, "ddpo")


def test_prdp() -> None:
    new = number("new").requires_grad_()
    algorithm = PRDP(log_ratio_scale=stored.PRDP_SCALE, clip_range=stored.PRDP_CLIP)
    mask = torch.ones(3, dtype=torch.float64)
    output = algorithm.loss(TrajectoryBatch(new, number("old"), number("flow"), mask, number("reference")))
    agrees(output, new, "prdp")
    same = TrajectoryBatch(new, number("old"), number("flow"), mask, number("old"))
    rebel = REBEL(log_ratio_scale=stored.PRDP_SCALE, clip_range=stored.PRDP_CLIP).loss(same)
    torch.testing.assert_close(algorithm.loss(same).loss, rebel.loss)  # where the last policy is the base model
    assert abs(output.loss.item() - rebel.loss.item()) > 1e-3, "and only there"


@pytest.mark.parametrize(("algorithm", "name"), [(GRPO(), "dance"), (GRPO(global_std=True), "flow")])
def test_group_advantages(algorithm: GRPO, name: str) -> None:
    normalizer: Normalizer = algorithm.own_normalizer()
    found = normalizer.update(["p"] * 5, number("rewards")[:, :, None])
    torch.testing.assert_close(found[:, :, 0].double(), number(name), rtol=1e-6, atol=1e-6)


def flow_grpo() -> RectifiedFlow:
    sigmas = number("sigmas")
    return RectifiedFlow(sigmas, 1000 * sigmas[:-1], stored.ETA, "flow_grpo")


def test_flow_grpo_s_step() -> None:
    denoiser = flow_grpo()
    x, v = (number(name).float().reshape(1, 6, 1, 1).expand(10, -1, -1, -1) for name in ("x", "v"))
    step = denoiser.transition(x, v, torch.arange(10))
    torch.testing.assert_close(step.mean.flatten(1).double(), number("means"), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(step.std.double(), number("deviations"), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(denoiser.std, step.std)
    assert step.std[0].item() == pytest.approx(0.700, abs=5e-4) and step.std[8].item() == pytest.approx(
        0.2254, abs=5e-4
    )
    assert denoiser.stochastic.all()


def test_flow_grpo_s_scale_of_the_kl_divergence() -> None:
    denoiser = flow_grpo()
    mean, base = (number(name).float().reshape(10, 6, 1, 1) for name in ("means", "base_means"))
    plain = gaussian.kl_divergence(mean, base, denoiser.std)
    evaluate: Any = StepEvaluator(None, "flow_grpo")  # type: ignore[arg-type]
    for step in range(10):
        rows = torch.tensor([step])
        found = evaluate._divergence(denoiser, mean[rows], base[rows], denoiser.std[rows], rows)
        assert found.item() == pytest.approx(NUMBERS["kl"][step], rel=2e-3)
        assert plain[step].item() > found.item(), "a step's own divergence is larger by 1/Δ"


def test_an_update_averages_the_gradients_of_the_steps_it_accumulates() -> None:
    """By SGD: one step of all four, against four updates of one step each from the same weights."""
    prompts, advantages = ["x"] * 6, torch.randn(6, 2, 4, generator=torch.Generator().manual_seed(1))

    def moved(**settings: Any) -> tuple[Tensor, int]:
        update = plane_update(DDPO(branches=2, clip_range=0), lr=1e-3, batch_size=6, shuffle=False, **settings)
        trajectories = sample(update.policy, 4, prompts)
        run_update(update, trajectories, advantages, micro_batch=settings.get("batch_size", 2))
        return shift(update), update.optimization.lr_schedule.last_epoch

    whole, steps = moved(accumulated=None)
    alone, many = moved(accumulated=1)
    assert (steps, many) == (1, 4) and moved(accumulated=3)[1] == 2
    torch.testing.assert_close(4 * whole, alone, rtol=0.02, atol=1e-6)
    assert whole.abs().max() > 1e-4
