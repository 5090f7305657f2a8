"""The step at which branches part: its draw, and the evaluations that it costs, by hand."""

from __future__ import annotations

import math

import pytest
import torch

from sdpo.method.branching import Branching


def test_a_fixed_step_is_that_of_every_group() -> None:
    branching = Branching.at(1, 4)
    assert branching.num_steps == 4 and branching.steps == [1]
    assert branching.draw(0, 1, range(3)).tolist() == [1, 1, 1]


def test_a_group_draws_its_step_from_its_own_key() -> None:
    branching = Branching((1.0, 2.0, 1.0))
    steps = branching.draw(7, 3, range(400))
    assert branching.draw(7, 3, [5, 399]).tolist() == steps[[5, 399]].tolist(), "whichever groups a process has"
    assert not torch.equal(branching.draw(7, 4, range(400)), steps) and not torch.equal(
        branching.draw(8, 3, range(400)), steps
    )


def test_steps_are_drawn_in_proportion_to_their_weights() -> None:
    count = 4000
    steps = Branching((1.0, 0.0, 3.0)).draw(0, 1, range(count))
    shares = steps.bincount(minlength=3) / count
    error = math.sqrt(0.75 * 0.25 / count)
    assert shares[1] == 0 and abs(shares[2] - 0.75) < 4 * error, shares


@pytest.mark.parametrize(
    ("step", "lookahead", "by_hand"),
    [
        (0, None, 1 + 8 * 3),  # one evaluation at the first step, three further steps of eight branches
        (1, None, 2 + 8 * 2),
        (2, None, 3 + 8 * 1),
        (0, 1, 1 + 8 * 1),
        (0, 2, 1 + 8 * 2),
        (2, 2, 3 + 8 * 1),  # only one step follows
    ],
)
def test_evaluations_by_hand(step: int, lookahead: int | None, by_hand: int) -> None:
    branching = Branching.at(step, 4, lookahead=lookahead)
    assert branching.evaluations(torch.tensor([step]), branches=8) == by_hand
    assert branching.evaluations(torch.tensor([step] * 5), branches=8) == 5 * by_hand


def test_the_ends_of_trajectories_are_seen_where_every_group_sees_them() -> None:
    assert Branching.at(0, 4).sees_first and Branching.at(0, 4).sees_last
    assert not Branching.at(1, 4).sees_first
    assert not Branching((1.0, 1.0, 1.0)).sees_first, "some groups branch later"
    assert not Branching.at(1, 4, lookahead=1).sees_last and Branching.at(1, 4, lookahead=2).sees_last
    assert not Branching((1.0, 1.0, 1.0), lookahead=2).sees_last, "those that branch at step 0 stop before it"
    assert Branching((0.0, 1.0, 1.0), lookahead=2).sees_last


@pytest.mark.parametrize("weights", [(), (0.0, 0.0), (1.0, -1.0), (math.nan, 1.0), (math.inf, 1.0)])
def test_weights_that_are_no_distribution_are_refused(weights: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="weights of steps"):
        Branching(weights)


def test_steps_that_nothing_follows_are_refused() -> None:
    with pytest.raises(ValueError, match="0 … 2"):
        Branching.at(3, 4)
    with pytest.raises(ValueError, match="lookahead"):
        Branching.at(0, 4, lookahead=0)
