"""Scaled gradients that overflow, as in float16: the optimizer step is skipped, and nothing else is."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from helpers.plane_model import sample
from helpers.updates import plane_update, run_update, shift
from torch import Tensor

from sdpo.loop.policy import PromptEmbeddings
from sdpo.loop.policy_update import PolicyUpdate
from sdpo.method.algorithms import Algorithm
from sdpo.method.types import LossOutput, StepBatch

T = 4
PROMPTS = ["x"] * 6


@dataclass(frozen=True)
class LogProb(Algorithm[StepBatch]):
    """Pulls log-probabilities down."""

    def loss(self, batch: StepBatch) -> LossOutput:
        loss = batch.log_prob.mean()
        return LossOutput(loss, {"loss": loss.detach()})


def run(updater: PolicyUpdate) -> dict[str, Tensor]:
    """The metrics of an update with advantages of 0."""
    trajectories = sample(updater.policy, T, PROMPTS)
    return run_update(updater, trajectories, torch.zeros(trajectories.log_prob.shape))


def with_scaler(updater: PolicyUpdate, scale: float) -> PolicyUpdate:
    updater.optimization.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    return updater


def test_an_overflow_of_scaled_gradients_skips_the_step_and_nothing_else() -> None:
    plain, scaled = (plane_update(LogProb(), lr=1e-3, ema_decay=0.9) for _ in range(2))
    with_scaler(scaled, 2.0**8)
    run(plain)
    metrics = run(scaled)
    assert metrics["skipped_steps"] == 0 and torch.allclose(shift(plain), shift(scaled), rtol=1e-4)

    overflowing = with_scaler(plane_update(LogProb(), lr=1e-3, ema_decay=0.9), 2.0**127)
    metrics = run(overflowing)
    skipped, steps = int(metrics["skipped_steps"]), overflowing.settings.visits.optimizer_steps(2, T)
    assert 0 < skipped < steps
    assert overflowing.optimization.lr_schedule.last_epoch == steps - skipped
    ema = overflowing.optimization.ema
    assert ema is not None and ema.count == steps - skipped
    assert metrics["grad_norm"].isfinite() and shift(overflowing).isfinite().all()


def test_an_epoch_whose_every_step_overflows_is_no_divergence() -> None:
    overflowing = with_scaler(plane_update(LogProb(), lr=1e-3, batch_size=6, timestep_fraction=0.1), 2.0**8)
    overflowing.optimization.parameters[0].register_hook(lambda gradient: torch.full_like(gradient, float("inf")))
    before = shift(overflowing)
    metrics = run(overflowing)
    assert metrics["skipped_steps"] == 1 and metrics["grad_norm"] == 0
    assert all(value.isfinite() for value in metrics.values()), metrics
    assert torch.equal(shift(overflowing), before)
    trajectories = sample(overflowing.policy, T, PROMPTS)
    denoiser, embeddings = overflowing.policy.backbone.denoiser(T, 1.0), PromptEmbeddings(overflowing.policy.backbone)
    again = overflowing.run(trajectories, torch.zeros(trajectories.log_prob.shape), denoiser, embeddings, 2, 6)
    assert again.metrics["skipped_steps"] == 1 and again.watch.first() is None


def test_an_overflow_in_another_process_skips_the_step_here_too() -> None:
    updater = with_scaler(plane_update(LogProb(), lr=1e-3), 2.0**8)
    calls = 0

    def all_reduce(tensor: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return torch.full_like(tensor, float("inf")) if calls == 1 else tensor

    updater.optimization.all_reduce = all_reduce
    metrics = run(updater)
    assert metrics["skipped_steps"] == 1
    assert shift(updater).isfinite().all() and updater.optimization.scaler.get_scale() == 2.0**7


def test_a_scaler_state_is_optional() -> None:
    """A run that began where no scaling was needed goes on where it is."""
    stored = plane_update(LogProb()).optimization.state_dict()
    resumed = with_scaler(plane_update(LogProb()), 2.0**8).optimization
    resumed.load_state_dict(stored)
    assert resumed.scaler.get_scale() == 2.0**8
