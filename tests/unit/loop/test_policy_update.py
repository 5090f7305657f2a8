"""The update: what each pass visits, what each setting does to the weights, and what an overflow does not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from helpers.plane_model import Plane, optimize
from helpers.updates import run_update, update_settings
from torch import Tensor

from sdpo.loop.policy import Policy, PromptEmbeddings
from sdpo.loop.policy_update import PolicyUpdate
from sdpo.loop.rollout import rollout
from sdpo.loop.shared_first_step import network_rows
from sdpo.loop.visits import Visits
from sdpo.method import gaussian
from sdpo.method.algorithms import D3PO, PRDP, REBEL, SDPO, Algorithm
from sdpo.method.denoisers import Transition
from sdpo.method.types import LossOutput, StepBatch, Trajectories, TrajectoryBatch
from sdpo.prompts import Prompt

T = 4


@dataclass(frozen=True)
class Recording(Algorithm[StepBatch]):
    """Pulls log-probabilities down; remembers steps and old log-probabilities, which tell the samples apart."""

    seen: list[tuple[list[int], Tensor]]

    def loss(self, batch: StepBatch) -> LossOutput:
        self.seen.append((batch.step_index.tolist(), batch.old_log_prob))
        loss = batch.log_prob.mean()
        return LossOutput(loss, {"loss": loss.detach()})


def sampled(policy: Policy, groups: int = 6) -> Trajectories:
    prompts = [Prompt("x")] * groups
    parts = rollout(
        policy, policy.backbone.denoiser(T, 1.0), PromptEmbeddings(policy.backbone), prompts, range(groups),
        seed=0, epoch=1, branches=2, micro_batch=groups,
    )  # fmt: skip
    return Trajectories.collect(parts, groups)


def make(
    algorithm: Algorithm[Any] | None = None,
    lr: float = 0.1,
    ema: float | None = None,
    max_grad_norm: float = 1e9,
    **settings: Any,
) -> PolicyUpdate:
    policy = Policy(Plane())
    given = update_settings(**{"batch_size": 3, **settings})
    optimization = optimize(policy, torch.optim.SGD, lr=lr, max_grad_norm=max_grad_norm, ema_decay=ema)
    return PolicyUpdate(policy, algorithm or Recording([]), given, optimization)


def run(updater: PolicyUpdate, epoch: int = 1, advantage: float = 0.0) -> dict[str, Tensor]:
    trajectories = sampled(updater.policy)
    return run_update(updater, trajectories, torch.full(trajectories.log_prob.shape, advantage), epoch)


def orders(epoch: int = 1, **settings: Any) -> list[list[int]]:
    """The steps that each of six samples went through, in order."""
    seen: list[tuple[list[int], Tensor]] = []
    updater = make(Recording(seen), lr=0.0, **settings)
    run(updater, epoch)
    trajectories = sampled(updater.policy)
    visited: list[list[int]] = [[] for _ in range(6)]
    for steps, old in seen:
        for step, row in zip(steps, old, strict=True):
            (owner,) = (trajectories.log_prob[:, :, step] == row).all(1).nonzero().flatten().tolist()
            visited[owner].append(step)
    return visited


def test_every_sample_visits_every_step_once_in_an_order_of_its_own() -> None:
    first, second = orders(epoch=1), orders(epoch=2)
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
        updater = make(**settings)
        run(updater)
        assert updater.optimization.lr_schedule.last_epoch == updater.settings.visits.optimizer_steps(
            6 // updater.settings.batch_size, T
        ), settings


def test_a_fraction_of_steps_is_counted_in_whole_numbers() -> None:
    for fraction, steps, expected in ((0.28, 25, 7), (0.28, 50, 14), (0.5, 3, 2), (0.01, 4, 1), (1.0, 50, 50)):
        found = Visits(timestep_fraction=fraction).visited(steps)
        assert found == expected, (fraction, steps)


def shift(updater: PolicyUpdate) -> Tensor:
    return updater.optimization.parameters[0].detach().clone()


def test_the_gradient_norm_is_clipped_and_reported_before_clipping() -> None:
    updater = make(lr=1.0, max_grad_norm=1e-3, batch_size=6, timestep_fraction=0.25)
    norm = run(updater)["grad_norm"]
    assert norm > 1e-2
    assert shift(updater).norm() == pytest.approx(1e-3, rel=1e-3)


def test_the_kl_term_pulls_the_policy_to_the_base_model() -> None:
    moved = {}
    for weight in (0.0, 1.0):
        updater = make(SDPO(clip_range=0.0), lr=0.05, kl_weight=weight)
        with torch.no_grad():
            updater.optimization.parameters[0].fill_(0.5)
        metrics = run(updater)  # advantages of 0 and log-ratios of 0: no gradient but the KL's
        moved[weight] = (shift(updater) - 0.5).mean().item()
        assert ("kl_to_base" in metrics) == (weight > 0)
    assert moved[0.0] == pytest.approx(0, abs=1e-6) and moved[1.0] < -1e-4
    updater = make(SDPO(), kl_weight=1.0)
    assert run(updater)["kl_to_base"] == 0, "the base model differs from itself"


def with_scaler(updater: PolicyUpdate, scale: float) -> PolicyUpdate:
    updater.optimization.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    return updater


def test_an_overflow_of_scaled_gradients_skips_the_step_and_nothing_else() -> None:
    plain, scaled = make(lr=1e-3, ema=0.9), with_scaler(make(lr=1e-3, ema=0.9), 2.0**8)
    run(plain)
    metrics = run(scaled)
    assert metrics["skipped_steps"] == 0 and torch.allclose(shift(plain), shift(scaled), rtol=1e-4)

    overflowing = with_scaler(make(lr=1e-3, ema=0.9), 2.0**127)
    metrics = run(overflowing)
    skipped, steps = int(metrics["skipped_steps"]), overflowing.settings.visits.optimizer_steps(2, T)
    assert 0 < skipped < steps
    assert overflowing.optimization.lr_schedule.last_epoch == steps - skipped
    ema = overflowing.optimization.ema
    assert ema is not None and ema.count == steps - skipped
    assert metrics["grad_norm"].isfinite() and shift(overflowing).isfinite().all()


def test_an_epoch_whose_every_step_overflows_is_no_divergence() -> None:
    overflowing = with_scaler(make(lr=1e-3, batch_size=6, timestep_fraction=0.1), 2.0**8)
    overflowing.optimization.parameters[0].register_hook(lambda gradient: torch.full_like(gradient, float("inf")))
    before = shift(overflowing)
    metrics = run(overflowing)
    assert metrics["skipped_steps"] == 1 and metrics["grad_norm"] == 0
    assert all(value.isfinite() for value in metrics.values()), metrics
    assert torch.equal(shift(overflowing), before)
    trajectories = sampled(overflowing.policy)
    denoiser, embeddings = overflowing.policy.backbone.denoiser(T, 1.0), PromptEmbeddings(overflowing.policy.backbone)
    again = overflowing.run(trajectories, torch.zeros(trajectories.log_prob.shape), denoiser, embeddings, 2, 6)
    assert again.metrics["skipped_steps"] == 1 and again.watch.first() is None


def test_an_overflow_in_another_process_skips_the_step_here_too() -> None:
    updater = with_scaler(make(lr=1e-3), 2.0**8)
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
    stored = make().optimization.state_dict()
    resumed = with_scaler(make(), 2.0**8).optimization
    resumed.load_state_dict(stored)
    assert resumed.scaler.get_scale() == 2.0**8


def test_branches_can_share_the_network_evaluation_of_the_first_step() -> None:
    """The same gradients from fewer evaluations, whatever mix of steps a batch has."""
    found = {}
    for share in (False, True):
        updater = make(SDPO(clip_range=0.0), lr=1e-2, kl_weight=0.1)
        with torch.no_grad():
            updater.optimization.parameters[0].fill_(0.3)
        policy = updater.policy
        denoiser, embeddings = policy.backbone.denoiser(T, 1.0), PromptEmbeddings(policy.backbone)
        parts = list(rollout(policy, denoiser, embeddings, [Prompt("x")] * 6, range(6), seed=0, epoch=1, branches=3,
                             micro_batch=4, share_first_step=share))  # fmt: skip
        assert policy.evaluations == 6 * 3 * T - (6 * 2 if share else 0)
        trajectories = Trajectories.collect(parts, 6)
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


class Doubles:
    """A policy in float64 whose steps share their weights in a way that is not linear."""

    dtype = torch.float32

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.weight = torch.nn.Parameter(torch.randn(2, 2, generator=generator, dtype=torch.float64))
        self.backbone = self
        self.device = torch.device("cpu")
        self.calls: list[int] = []

    def trainable_parameters(self) -> dict[str, torch.nn.Parameter]:
        return {"weight": self.weight}

    def transition(self, denoiser: None, x: Tensor, step_index: Tensor, conditioning: Any) -> Transition:
        self.calls.append(len(x))
        mean = torch.tanh(x @ self.weight) * (1 + step_index[:, None].double())
        return Transition(mean, 0.5 + 0.1 * step_index.double(), mean)


class NoPrompts:
    def rows(self, prompts: list[str]) -> Tensor:
        return torch.arange(len(prompts))

    def take(self, rows: Tensor) -> dict[str, Tensor]:
        return {}


@pytest.mark.parametrize("micro_batch", [1, 2, 6])
@pytest.mark.parametrize("last_step", [True, False])
@pytest.mark.parametrize("algorithm", [REBEL(log_ratio_scale=0.5), PRDP(clip_range=0.02)])
def test_the_gradient_of_whole_trajectories_is_exact_at_the_memory_of_one_step(
    algorithm: REBEL, last_step: bool, micro_batch: int
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
    loss = algorithm.loss(TrajectoryBatch(all_log_probs(), old, advantages[:, :, 0], mask)).loss
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


def test_preferences_are_relative_to_the_base_model() -> None:
    """With weights that have moved, D3PO's margin on policy is what they have moved by, not 0."""
    updater = make(D3PO(beta=1.0), lr=0.0)
    assert run(updater, advantage=0.0)["log_ratio_difference"] == 0
    with torch.no_grad():
        updater.optimization.parameters[0].fill_(0.5)
    trajectories = sampled(updater.policy)
    advantages = torch.arange(12.0).reshape(6, 2, 1).expand(6, 2, T)
    metrics = run_update(updater, trajectories, advantages)
    assert metrics["on_policy_log_ratio"] == 0 and metrics["log_ratio_difference"] > 0
