"""The update: what each pass visits, and what each setting does to the weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from helpers.plane_model import sample
from helpers.updates import plane_update, run_update, shift
from torch import Tensor

from sdpo.loop.policy_update import PolicyUpdate
from sdpo.loop.shared_first_step import network_rows
from sdpo.loop.visits import Visits
from sdpo.method.algorithms import D3PO, SDPO, Algorithm
from sdpo.method.types import LossOutput, StepBatch

T = 4
PROMPTS = ["x"] * 6


@dataclass(frozen=True)
class Recording(Algorithm[StepBatch]):
    """Pulls log-probabilities down; remembers steps and old log-probabilities, which tell the samples apart."""

    seen: list[tuple[list[int], Tensor]]

    def loss(self, batch: StepBatch) -> LossOutput:
        self.seen.append((batch.step_index.tolist(), batch.old_log_prob))
        loss = batch.log_prob.mean()
        return LossOutput(loss, {"loss": loss.detach()})


def run(updater: PolicyUpdate, epoch: int = 1) -> dict[str, Tensor]:
    """The metrics of an update with advantages of 0."""
    trajectories = sample(updater.policy, T, PROMPTS)
    return run_update(updater, trajectories, torch.zeros(trajectories.log_prob.shape), epoch)


def orders(epoch: int = 1, **settings: Any) -> list[list[int]]:
    """The steps that each of six samples went through, in order."""
    seen: list[tuple[list[int], Tensor]] = []
    updater = plane_update(Recording(seen), lr=0.0, **settings)
    run(updater, epoch)
    trajectories = sample(updater.policy, T, PROMPTS)
    visited: list[list[int]] = [[] for _ in range(6)]
    for steps, old in seen:
        for step, row in zip(steps, old, strict=True):
            (owner,) = (trajectories.log_prob[:, :, step] == row).all(1).nonzero().flatten().tolist()
            visited[owner].append(step)
    return visited


def test_every_sample_visits_every_step_once_in_an_order_of_its_own() -> None:
    first, second = orders(epoch=1), orders(epoch=2)
    assert len(first) == len(second) == 6
    assert all(sorted(order) == list(range(T)) for order in [*first, *second])
    assert len({tuple(order) for order in first}) > 1, "all samples share one order"
    assert first != second, "the order does not change from epoch to epoch"
    assert orders(shuffle=False) == [list(range(T))] * 6


def test_a_fraction_of_the_steps_and_several_passes() -> None:
    halves = orders(timestep_fraction=0.5)
    assert all(len(set(order)) == 2 == len(order) for order in halves)
    twice = orders(inner_epochs=2)
    assert all(sorted(order[:T]) == sorted(order[T:]) == list(range(T)) for order in twice)
    assert any(order[:T] != order[T:] for order in twice)
    assert all(sorted(order) == list(range(T - 1)) for order in orders(last_step=False))
    assert all(sorted(order) == [0, 1] for order in orders(first_steps=2))
    assert all(sorted(order) == list(range(T - 1)) for order in orders(first_steps=9, last_step=False))


def test_optimizer_steps_are_counted_right() -> None:
    for settings in (
        {},
        {"inner_epochs": 3},
        {"timestep_fraction": 0.5},
        {"batch_size": 6},
        {"last_step": False},
        {"first_steps": 2},
    ):
        updater = plane_update(Recording([]), **settings)
        run(updater)
        assert updater.optimization.lr_schedule.last_epoch == updater.settings.visits.optimizer_steps(
            6 // updater.settings.batch_size, T
        ), settings


def test_a_fraction_of_steps_is_counted_in_whole_numbers() -> None:
    for fraction, steps, expected in ((0.28, 25, 7), (0.28, 50, 14), (0.5, 3, 2), (0.01, 4, 1), (1.0, 50, 50)):
        found = Visits(timestep_fraction=fraction).visited(steps)
        assert found == expected, (fraction, steps)


def test_the_gradient_norm_is_clipped_and_reported_before_clipping() -> None:
    updater = plane_update(Recording([]), lr=1.0, max_grad_norm=1e-3, batch_size=6, timestep_fraction=0.25)
    norm = run(updater)["grad_norm"]
    assert norm > 1e-2
    assert shift(updater).norm() == pytest.approx(1e-3, rel=1e-3)


def test_the_kl_term_pulls_the_policy_to_the_base_model() -> None:
    moved = {}
    for weight in (0.0, 1.0):
        updater = plane_update(SDPO(clip_range=0.0), lr=0.05, kl_weight=weight)
        with torch.no_grad():
            updater.optimization.parameters[0].fill_(0.5)
        metrics = run(updater)  # advantages of 0 and log-ratios of 0: no gradient but the KL's
        moved[weight] = (shift(updater) - 0.5).mean().item()
        assert ("kl_to_base" in metrics) == (weight > 0)
    assert moved[0.0] == pytest.approx(0, abs=1e-6) and moved[1.0] < -1e-4
    updater = plane_update(SDPO(), kl_weight=1.0)
    assert run(updater)["kl_to_base"] == 0, "the base model differs from itself"


def test_branches_can_share_the_network_evaluation_of_the_first_step() -> None:
    """The same gradients from fewer evaluations, whatever mix of steps a batch has."""
    found = {}
    for share in (False, True):
        updater = plane_update(SDPO(clip_range=0.0), lr=1e-2, kl_weight=0.1)
        with torch.no_grad():
            updater.optimization.parameters[0].fill_(0.3)
        policy = updater.policy
        trajectories = sample(policy, T, PROMPTS, branches=3, micro_batch=4, share_first_step=share)
        assert policy.evaluations == 6 * 3 * T - (6 * 2 if share else 0)
        advantages = torch.randn(trajectories.log_prob.shape, generator=torch.Generator().manual_seed(0))
        metrics = run_update(updater, trajectories, advantages)
        assert metrics["on_policy_log_ratio"] < 1e-5
        found[share] = (trajectories, shift(updater), metrics["loss"], policy.evaluations)
    plain, shared = found[False], found[True]
    assert torch.allclose(plain[0].states, shared[0].states, atol=1e-6)
    assert torch.allclose(plain[0].log_prob, shared[0].log_prob, atol=1e-5)
    assert torch.allclose(plain[1], shared[1], atol=1e-6) and torch.allclose(plain[2], shared[2], rtol=1e-5)
    assert plain[3] - shared[3] == 3 * 12  # in sampling, in the update, and in the base model's pass for the KL


def test_network_rows() -> None:
    group, branch, place = network_rows(torch.tensor([0, 2, 0]), 2, shared_first_step=True)
    assert (group.tolist(), branch.tolist()) == ([0, 1, 1, 2], [0, 0, 1, 0])
    assert place is not None and place.tolist() == [0, 0, 1, 2, 3, 3]
    group, branch, place = network_rows(torch.tensor([0, 2]), 2, shared_first_step=False)
    assert (group.tolist(), branch.tolist(), place) == ([0, 0, 1, 1], [0, 1, 0, 1], None)


def test_preferences_are_relative_to_the_base_model() -> None:
    """With weights that have moved, D3PO's margin on policy is what they have moved by, not 0."""
    updater = plane_update(D3PO(beta=1.0), lr=0.0)
    assert run(updater)["log_ratio_difference"] == 0
    with torch.no_grad():
        updater.optimization.parameters[0].fill_(0.5)
    trajectories = sample(updater.policy, T, PROMPTS)
    advantages = torch.arange(12.0).reshape(6, 2, 1).expand(6, 2, T)
    metrics = run_update(updater, trajectories, advantages)
    assert metrics["on_policy_log_ratio"] == 0 and metrics["log_ratio_difference"] > 0
