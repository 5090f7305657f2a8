"""Losses of whole trajectories: exact gradients at the memory of one step."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from helpers.plane_model import optimize
from helpers.updates import update_settings
from torch import Tensor

from sdpo.loop.policy_update import PolicyUpdate
from sdpo.method import gaussian
from sdpo.method.algorithms import PRDP, REBEL
from sdpo.method.denoisers import Transition
from sdpo.method.types import Trajectories, TrajectoryBatch

T = 4


class Doubles:
    """A policy in float64 whose steps share their weights in a way that is not linear."""

    dtype = torch.float32

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.weight = torch.nn.Parameter(torch.randn(2, 2, generator=generator, dtype=torch.float64))
        self.backbone = self
        self.device = torch.device("cpu")
        self.calls: list[int] = []
        self.scale = 1.0

    @contextlib.contextmanager
    def reference(self) -> Iterator[None]:
        """The base model has half the weights."""
        self.scale = 0.5
        yield
        self.scale = 1.0

    def trainable_parameters(self) -> dict[str, torch.nn.Parameter]:
        return {"weight": self.weight}

    def transition(self, denoiser: None, x: Tensor, step_index: Tensor, conditioning: Any) -> Transition:
        self.calls.append(len(x))
        mean = torch.tanh(x @ (self.weight * self.scale)) * (1 + step_index[:, None].double())
        return Transition(mean, 0.5 + 0.1 * step_index.double(), mean)


class NoPrompts:
    def rows(self, prompts: list[str]) -> Tensor:
        return torch.arange(len(prompts))

    def take(self, rows: Tensor) -> dict[str, Tensor]:
        return {}


@pytest.mark.parametrize("micro_batch", [1, 2, 6])
@pytest.mark.parametrize("last_step", [True, False])
@pytest.mark.parametrize("algorithm", [REBEL(log_ratio_scale=0.5), REBEL(clip_range=0.02), PRDP(clip_range=0.02)])
def test_the_gradient_of_whole_trajectories_is_exact_at_the_memory_of_one_step(
    algorithm: REBEL | PRDP, last_step: bool, micro_batch: int
) -> None:
    groups, branches = 6, 2
    generator = torch.Generator().manual_seed(1)
    states = torch.randn(groups, branches, T + 1, 2, generator=generator, dtype=torch.float64)
    advantages = torch.randn(groups, branches, T, generator=generator, dtype=torch.float64)
    steps = T if last_step else T - 1
    policy = Doubles()

    def all_log_probs() -> Tensor:
        parts = []
        for step in range(T):
            index = torch.full((groups * branches,), step)
            now = policy.transition(None, states[:, :, step].flatten(0, 1), index, {})
            density = gaussian.log_prob(states[:, :, step + 1].flatten(0, 1), now.mean, now.std)
            parts.append(density.unflatten(0, (groups, branches)))
        return torch.stack(parts, -1)

    old = all_log_probs().detach() + 0.05 * torch.randn(groups, branches, T, generator=generator, dtype=torch.float64)
    # Naively: one graph over all steps.
    mask = torch.tensor([1.0] * steps + [0.0] * (T - steps))
    with policy.reference():
        reference = all_log_probs().detach()
    loss = algorithm.loss(TrajectoryBatch(all_log_probs(), old, advantages[:, :, 0], mask, reference)).loss
    (expected,) = torch.autograd.grad(loss, policy.weight)

    trajectories = Trajectories(["x"] * groups, [{}] * groups, torch.arange(groups), states, old,
                                torch.ones(T, dtype=torch.bool))  # fmt: skip
    optimization = optimize({"weight": policy.weight}, torch.optim.SGD, lr=1.0, max_grad_norm=1e9)
    settings = update_settings(batch_size=groups, last_step=last_step, whole_trajectories=True)
    before, policy.calls = policy.weight.detach().clone(), []
    updater = PolicyUpdate(policy, algorithm, settings, optimization)  # type: ignore[arg-type]
    nothing: Any = NoPrompts()
    metrics = updater.run(trajectories, advantages, None, nothing, 1, micro_batch).metrics  # type: ignore[arg-type]
    assert torch.allclose(before - policy.weight.detach(), expected, rtol=1e-12, atol=1e-14)
    assert metrics["loss"].item() == pytest.approx(loss.item(), rel=1e-12)
    assert max(policy.calls) == micro_batch * branches, "no call sees more than one step of a micro-batch"
    assert optimization.lr_schedule.last_epoch == settings.visits.optimizer_steps(1, T) == 1
