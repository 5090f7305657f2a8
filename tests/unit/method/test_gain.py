"""The credit rule `gain` against numbers by hand; what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from sdpo.method.algorithms import DDPO, GRPO, PRDP, REBEL, SDPO
from sdpo.method.credit import GainCredit, StepCredit, future_returns, gains
from sdpo.method.credit.gain import fitted_values, other_groups_slopes
from sdpo.method.reward_plans import AllSteps, Anchors, FinalStep

# Two groups of two branches, three steps. Deviations from the group's mean, of the first branch:
# group 0: 1, 0, 1; group 1: 1, 2, 2.
REWARDS = torch.tensor([[[3.0, 5.0, 9.0], [1.0, 5.0, 7.0]], [[0.0, 2.0, 4.0], [-2.0, -2.0, 0.0]]])
# Σ x y / (Σ x² + Σ y² / ν) of the other group, with ν = (2 − 1)(2 − 1) = 1; both branches enter the sums.
SLOPES = torch.tensor([[4 / (2 + 8), 8 / (8 + 8), 1.0], [2 / (2 + 2), 0.0, 1.0]], dtype=torch.float64)


@pytest.mark.parametrize(
    ("gae_lambda", "expected"),
    [(0.0, [2.0, -3.0, 0.0]), (0.5, [2 - 0.5 * 3, -3.0, 0.0]), (1.0, [-1.0, -3.0, 0.0])],
)
def test_gains_of_three_steps_by_hand(gae_lambda: float, expected: list[float]) -> None:
    rewards = torch.tensor([5.0, 7.0, 4.0])
    assert gains(rewards, gae_lambda).tolist() == expected
    assert GainCredit(gae_lambda)(rewards[None, None], 1.0).tolist() == [[expected]]
    assert gains(torch.tensor([5.0]), gae_lambda).tolist() == [0.0], "nothing follows the only step"


@pytest.mark.parametrize("gae_lambda", [0.0, 0.5, 1.0])
def test_gains_over_a_fitted_baseline_by_hand(gae_lambda: float) -> None:
    found = GainCredit(gae_lambda, "fitted")(REWARDS, 1.0)
    # The values of the first branch: the group's mean plus the slope times the deviation.
    values = [[2 + 0.4 * 1, 5 + 0.5 * 0, 9.0], [-1 + 0.5 * 1, 0 + 0 * 2, 4.0]]
    for group, (first, second, last) in enumerate(values):
        delta, following = second - first, last - second
        expected = [delta + gae_lambda * following, following, 0.0]
        assert found[group, 0].tolist() == pytest.approx(expected, abs=1e-6)
    assert found.dtype == REWARDS.dtype


def test_slopes_by_hand() -> None:
    deviations = (REWARDS - REWARDS.mean(1, keepdim=True)).double()
    torch.testing.assert_close(other_groups_slopes(deviations)[:, 0, :2], SLOPES[:, :2])


def random_rewards(seed: int = 0, groups: int = 400, branches: int = 3, steps: int = 4) -> Tensor:
    return torch.randn(groups, branches, steps, generator=torch.Generator().manual_seed(seed))


def deviations(rewards: Tensor) -> Tensor:
    return rewards.double() - rewards.double().mean(1, keepdim=True)


def test_slopes_are_those_of_least_squares_where_groups_are_many() -> None:
    x = random_rewards()
    x[..., -1] = 0.5 * x[..., 0] - 2 * x[..., 1] + 0.1 * x[..., -1]
    slopes = other_groups_slopes(deviations(x))
    y = deviations(x)[..., -1].flatten()
    for step in range(3):
        one = deviations(x)[..., step].flatten()
        least_squares = (one @ y) / (one @ one)
        torch.testing.assert_close(slopes[:, 0, step].mean(), least_squares, rtol=0.01, atol=0.001)


def test_a_group_does_not_move_its_own_slope() -> None:
    rewards, other = random_rewards(), random_rewards()
    other[7] = 50 * random_rewards(1, groups=1)[0]
    before, after = other_groups_slopes(deviations(rewards)), other_groups_slopes(deviations(other))
    torch.testing.assert_close(after[7], before[7], rtol=1e-9, atol=1e-12)
    assert (after[8] - before[8]).abs().max() > 0.01, "but those of others"


@pytest.mark.parametrize("spread", [0.0, 1e-6])
def test_a_reward_that_tells_branches_apart_by_rounding_alone_is_not_scaled_up(spread: float) -> None:
    rewards = random_rewards()
    rewards[..., 0] = 3 + spread * rewards[..., 0]
    assert other_groups_slopes(deviations(rewards))[..., 0].abs().max() < 1e-3
    assert GainCredit(baseline="fitted")(rewards, 1.0).abs().max() < 15
    still = torch.full((2, 2, 3), 3.0)
    assert (GainCredit(baseline="fitted")(still, 1.0) == 0).all()


@pytest.mark.parametrize("credit", [GainCredit(0.5), GainCredit(0.5, "fitted")])
def test_gains_know_nothing_of_the_level_of_rewards_and_follow_their_scale(credit: GainCredit) -> None:
    rewards = random_rewards(groups=5)
    expected = credit(rewards, 1.0)
    torch.testing.assert_close(credit(rewards + 100, 1.0), expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(credit(4 * rewards, 1.0), 4 * expected)


def test_a_reward_that_predicts_the_final_one_exactly_is_subtracted_but_for_the_ridge() -> None:
    rewards = random_rewards(groups=5)
    rewards[..., :-1] = rewards[..., -1:]  # c = ν / (ν + 1) with ν = 4 · 2
    values = fitted_values(rewards)
    torch.testing.assert_close(deviations(values.float())[..., 0], deviations(rewards)[..., 0] * 8 / 9)
    torch.testing.assert_close(values[..., -1].float(), rewards[..., -1])


# -- what is refused -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gae_lambda", [-0.1, 1.1, float("nan")])
def test_a_lambda_outside_its_range_is_refused(gae_lambda: float) -> None:
    with pytest.raises(ValueError, match="gae_lambda must be in 0 … 1"):
        GainCredit(gae_lambda)


@pytest.mark.parametrize("shape", [(1, 2, 3), (2, 1, 3)])
def test_a_fit_needs_two_groups_of_two_branches(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="two groups of two branches"):
        GainCredit(baseline="fitted")(torch.zeros(shape), 1.0)


def test_a_discount_is_not_ignored() -> None:
    with pytest.raises(ValueError, match="set algorithm.discount=1"):
        GainCredit()(REWARDS, 0.99)


GAIN, FITTED = GainCredit(), GainCredit(baseline="fitted")


@pytest.mark.parametrize(
    ("algorithm", "settings", "message"),
    [
        (SDPO, {"credit": GAIN}, "algorithm.discount is 0.99: set algorithm.discount=1"),
        (DDPO, {"credit": GAIN}, "scores the last image alone.*set algorithm.reward_plan=all"),
        (GRPO, {"credit": FITTED, "reward_plan": FinalStep()}, "set algorithm.reward_plan=all"),
        (REBEL, {"credit": GAIN, "reward_plan": AllSteps()}, "a whole trajectory: use algorithm.credit=step or future"),
        (PRDP, {"credit": GAIN, "reward_plan": AllSteps()}, "a whole trajectory: use algorithm.credit=step or future"),
        (GRPO, {"credit": FITTED, "reward_plan": Anchors()}, "the final one among them"),
        (DDPO, {"credit": FITTED, "reward_plan": AllSteps()}, "algorithm.branches is 1: use 2 or more"),
    ],
)
def test_algorithms_that_gains_mean_nothing_to_are_refused(
    algorithm: Any, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        algorithm(**settings)
    algorithm(**{**settings, "credit": StepCredit()})


def test_why_the_final_reward_alone_is_refused() -> None:
    """With λ = 1 it would be the rule `future`; with another λ each step is scaled, which normalisation undoes."""
    rewards = random_rewards(groups=2)
    rewards[..., :-1] = 0
    assert torch.equal(gains(rewards, 1.0), future_returns(rewards, 1.0))
    factors = torch.tensor([0.25, 0.5, 1.0, 0.0])
    torch.testing.assert_close(gains(rewards, 0.5), factors * future_returns(rewards, 1.0))
