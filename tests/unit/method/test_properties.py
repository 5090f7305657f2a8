"""Properties of the method that hold for any numbers, of every algorithm and normaliser there is."""

from __future__ import annotations

import io
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sdpo import Config
from sdpo.method.advantages import NORMALIZERS, Normalizer
from sdpo.method.algorithms import POLICY_ALGORITHMS
from sdpo.method.credit import discounted_returns, future_returns
from sdpo.method.dense_rewards import interpolate, query_steps, similarities
from sdpo.method.types import StepBatch, TrajectoryBatch

SEEDS = st.integers(0, 10**6)
some = settings(max_examples=25, deadline=None, derandomize=True)  # tolerances: the same cases each time


def numbers(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def dense_rewards(x0: Tensor, queries: Tensor, rewards: Tensor) -> Tensor:
    return interpolate(similarities(x0, queries), queries, rewards)


# -- dense rewards -------------------------------------------------------------------------------------------


@some
@given(SEEDS, st.integers(1, 7), st.integers(-8, 8), st.floats(-100, 100))
def test_dense_rewards_follow_the_scale_and_the_origin_of_rewards(
    seed: int, steps: int, power: int, shift: float
) -> None:
    x0 = numbers(seed, 3, 2, steps, 2, 3, 3).float()
    queries, rewards = query_steps(x0), numbers(seed + 1, 3, 2, 3).float()
    dense = dense_rewards(x0, queries, rewards)
    # Powers of two lose no digit: the scale of latents does not matter at all, that of rewards comes through.
    assert torch.equal(dense_rewards(x0 * 2.0**power, queries, rewards), dense)
    assert torch.equal(dense_rewards(x0, queries, rewards * 2.0**power), dense * 2.0**power)
    torch.testing.assert_close(dense_rewards(x0, queries, rewards + shift), dense + shift, rtol=0, atol=0.02)
    constant = torch.full_like(rewards, shift)
    assert torch.equal(dense_rewards(x0, queries, constant), constant[..., :1].expand_as(dense))


@some
@given(SEEDS, st.integers(1, 7))
def test_a_trajectory_s_rewards_are_its_own(seed: int, steps: int) -> None:
    x0, rewards = numbers(seed, 4, 2, steps, 2, 3, 3).float(), numbers(seed + 1, 4, 2, 3).float()
    whole = dense_rewards(x0, query_steps(x0), rewards)
    for i in range(4):
        torch.testing.assert_close(
            dense_rewards(x0[i : i + 1], query_steps(x0[i : i + 1]), rewards[i : i + 1])[0], whole[i]
        )


# -- returns -------------------------------------------------------------------------------------------------


@some
@given(SEEDS, st.integers(1, 9), st.floats(0, 1))
def test_returns_obey_their_recursion(seed: int, steps: int, discount: float) -> None:
    rewards, others = numbers(seed, 2, 3, steps), numbers(seed + 1, 2, 3, steps)
    returns = discounted_returns(rewards, discount)
    following = torch.cat([returns[..., 1:], torch.zeros_like(returns[..., :1])], dim=-1)
    torch.testing.assert_close(returns, rewards + discount * following)
    torch.testing.assert_close(future_returns(rewards, discount), discount * following)
    torch.testing.assert_close(
        discounted_returns(2 * rewards - others, discount), 2 * returns - discounted_returns(others, discount)
    )
    assert torch.equal(discounted_returns(rewards, 0.0), rewards)
    torch.testing.assert_close(discounted_returns(rewards, 1.0), rewards.flip(-1).cumsum(-1).flip(-1))


# -- advantages ----------------------------------------------------------------------------------------------


def fresh(name: str) -> Normalizer:
    return Config.load("emoji", advantage={"normalizer": name}).build_normalizer()


PROMPTS = ["a", "b", "a", "c"]


@pytest.mark.parametrize("name", NORMALIZERS)
@some
@given(SEEDS, st.integers(1, 5), st.floats(0.5, 50), st.floats(-50, 50))
def test_advantages_know_neither_scale_nor_origin_nor_order(
    name: str, seed: int, steps: int, scale: float, shift: float
) -> None:
    returns = numbers(seed, 4, 3, steps)
    found = fresh(name).update(PROMPTS, returns)
    assert found.shape == returns.shape and found.isfinite().all()
    torch.testing.assert_close(fresh(name).update(PROMPTS, returns * scale + shift), found, rtol=1e-2, atol=1e-3)
    order = [2, 0, 3, 1]
    moved = fresh(name).update([PROMPTS[i] for i in order], returns[order])
    torch.testing.assert_close(moved, found[order], rtol=1e-4, atol=1e-5)
    better = returns[:, 0] > returns[:, 1]  # within a group the better branch stays the better one
    assert (found[:, 0] > found[:, 1]).eq(better).all()
    assert (fresh(name).update(PROMPTS, torch.full_like(returns.float(), shift)) == 0).all()


@pytest.mark.parametrize("name", NORMALIZERS)
@some
@given(SEEDS, st.integers(1, 12))
def test_a_saved_normaliser_goes_on_as_the_one_that_was_not(name: str, seed: int, epochs: int) -> None:
    kept = fresh(name)
    for epoch in range(epochs):
        kept.update(PROMPTS, numbers(seed + epoch, 4, 3, 2))
    file = io.BytesIO()
    torch.save(kept.state_dict(), file)
    file.seek(0)
    restored = fresh(name)
    restored.load_state_dict(torch.load(file, weights_only=True))
    new = numbers(seed - 1, 4, 3, 2)
    assert torch.equal(restored.update(PROMPTS, new), kept.update(PROMPTS, new))


# -- objectives ----------------------------------------------------------------------------------------------


def batch_for(algorithm: Any, seed: int, groups: int = 4, steps: int = 3) -> StepBatch | TrajectoryBatch:
    """Random numbers for any algorithm; log-ratios up to a few tenths."""
    branches, step = algorithm.branches, not algorithm.takes_trajectories
    shape = (groups, branches) if step else (groups, branches, steps)
    old = numbers(seed, *shape)
    log_prob = (old + 0.1 * numbers(seed + 1, *shape)).requires_grad_(True)
    advantage = 3 * numbers(seed + 2, groups, branches)
    if not step:
        mask = (torch.arange(steps) != seed % steps).double()
        return TrajectoryBatch(log_prob, old, advantage, mask, old + 0.1 * numbers(seed + 3, *shape))
    reference = old + 0.1 * numbers(seed + 3, *shape)
    mask = (torch.arange(groups) != seed % groups).double()
    return StepBatch(log_prob, old, advantage, torch.arange(groups) % steps, mask, reference)


def changed(batch: Any, change: Any, axis: int) -> Any:
    """The batch with every tensor that has the axis of groups (0) or branches (1) indexed along it."""
    whole = isinstance(batch, TrajectoryBatch)
    values = {}
    for field in fields(batch):
        tensor = getattr(batch, field.name)
        counts_groups = field.name in ("step_index",) or (field.name == "mask" and not whole)
        if tensor is not None and (tensor.ndim > 1 or (counts_groups and axis == 0)):
            values[field.name] = tensor.detach()[(slice(None),) * axis + (change,)]
    values["log_prob"].requires_grad_(True)
    return replace(batch, **values)


def loss_and_gradient(algorithm: Any, batch: Any) -> tuple[Tensor, Tensor]:
    output = algorithm.loss(batch)
    assert output.loss.ndim == 0 and output.loss.isfinite()
    for name, value in output.metrics.items():
        assert value.ndim == 0 and value.isfinite() and not value.requires_grad, name
    (gradient,) = torch.autograd.grad(output.loss, batch.log_prob)
    assert gradient.isfinite().all()
    return output.loss.detach(), gradient


@pytest.mark.parametrize("name", POLICY_ALGORITHMS)
@some
@given(SEEDS)
def test_losses_know_neither_the_order_of_groups_nor_of_branches(name: str, seed: int) -> None:
    algorithm = POLICY_ALGORITHMS[name]()
    batch = batch_for(algorithm, seed)
    loss, gradient = loss_and_gradient(algorithm, batch)
    for axis, count in ((0, 4), (1, algorithm.branches)):
        order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
        again, moved = loss_and_gradient(algorithm, changed(batch, order, axis))
        torch.testing.assert_close(again, loss)
        torch.testing.assert_close(moved, gradient.index_select(axis, order))


@pytest.mark.parametrize("name", POLICY_ALGORITHMS)
@some
@given(SEEDS)
def test_a_loss_is_the_mean_over_its_groups(name: str, seed: int) -> None:
    algorithm = POLICY_ALGORITHMS[name]()
    batch = batch_for(algorithm, seed)
    each = [loss_and_gradient(algorithm, changed(batch, slice(i, i + 1), 0)) for i in range(4)]
    loss, gradient = loss_and_gradient(algorithm, batch)
    torch.testing.assert_close(torch.stack([one for one, _ in each]).mean(), loss)
    torch.testing.assert_close(torch.cat([one for _, one in each]) / 4, gradient)


@pytest.mark.parametrize("name", POLICY_ALGORITHMS)
@some
@given(SEEDS)
def test_steps_without_a_density_teach_nothing(name: str, seed: int) -> None:
    algorithm = POLICY_ALGORITHMS[name]()
    batch = batch_for(algorithm, seed)
    _, gradient = loss_and_gradient(algorithm, batch)
    masked = gradient[..., batch.mask == 0] if algorithm.takes_trajectories else gradient[batch.mask == 0]
    assert masked.numel() and (masked == 0).all()


@pytest.mark.parametrize("name", POLICY_ALGORITHMS)
@some
@given(SEEDS)
def test_nothing_to_gain_is_nothing_to_learn(name: str, seed: int) -> None:
    algorithm = POLICY_ALGORITHMS[name]()
    batch = batch_for(algorithm, seed)
    on_policy = batch.old_log_prob.clone().requires_grad_(True)
    indifferent = replace(batch, log_prob=on_policy, advantage=torch.zeros_like(batch.advantage))
    if algorithm.takes_trajectories:  # the last policy is the base model: before that, prdp pulls towards it
        indifferent = replace(indifferent, reference_log_prob=batch.old_log_prob)
    assert (loss_and_gradient(algorithm, indifferent)[1] == 0).all()


# By name: whether the loss takes whole trajectories, whether it takes the base model's log-probabilities, and the
# fewest branches that it can work with.
DECLARED = {
    "sdpo": (False, False, 2),
    "ddpo": (False, False, 1),
    "grpo": (False, False, 2),
    "d3po": (False, True, 2),
    "rebel": (True, False, 2),
    "prdp": (True, True, 2),
}


@pytest.mark.parametrize("name", POLICY_ALGORITHMS)
def test_an_algorithm_takes_what_it_declares(name: str) -> None:
    algorithm = POLICY_ALGORITHMS[name]()
    takes_trajectories, needs_reference, min_branches = DECLARED[name]
    assert algorithm.takes_trajectories == takes_trajectories and algorithm.needs_reference == needs_reference
    assert POLICY_ALGORITHMS[name](branches=min_branches).branches == min_branches
    with pytest.raises(ValueError, match="algorithm.branches must be at least"):
        POLICY_ALGORITHMS[name](branches=min_branches - 1)
    batch: Any = batch_for(algorithm, seed=1)
    moved = replace(batch, reference_log_prob=batch.reference_log_prob + numbers(2, *batch.log_prob.shape))
    assert torch.equal(algorithm.loss(moved).loss, algorithm.loss(batch).loss) != needs_reference
