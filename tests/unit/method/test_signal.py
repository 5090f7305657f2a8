"""Statistics of a gradient's signal: by hand, against their definitions, and on simulations of known signal."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sdpo.method.projection import RandomProjection
from sdpo.method.signal import (
    Jackknifed,
    direction_signal,
    gradient_signal,
    groups_needed,
    half_batch_projections,
)


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_three_groups_by_hand() -> None:
    found = gradient_signal(torch.tensor([[1.0, 0.0], [2.0, 0.0], [3.0, 1.0]]))
    # Products of different groups: 1·2, 1·3, 2·3, of mean 11/3. Mean square (1 + 4 + 10) / 3 = 5.
    assert found.mean_square == pytest.approx(11 / 3)
    assert found.noise == pytest.approx(5 - 11 / 3)
    assert found.snr.value == pytest.approx((11 / 3) / (4 / 3))
    # Without each group: products 6, 3 and 2, mean squares 7, 5.5 and 2.5.
    assert found.snr.without.tolist() == pytest.approx([6 / 1, 3 / 2.5, 2 / 0.5])
    mean = (6 + 1.2 + 4) / 3
    squares = (6 - mean) ** 2 + (1.2 - mean) ** 2 + (4 - mean) ** 2
    assert found.snr.error == pytest.approx(math.sqrt(2 / 3 * squares))


def test_a_direction_by_hand() -> None:
    found = direction_signal(torch.tensor([1.0, 2.0, 6.0]))
    assert found.value == pytest.approx(3 / math.sqrt(7))  # variance (4 + 1 + 9) / 2
    assert found.without.tolist() == pytest.approx([4 / math.sqrt(8), 3.5 / math.sqrt(12.5), 1.5 / math.sqrt(0.5)])


def test_leaving_out_a_group_is_computing_without_it() -> None:
    gradients = normal(12, 5, seed=1) + 0.4
    whole, line = gradient_signal(gradients), direction_signal(gradients[:, 0])
    for b in range(12):
        rest = torch.cat([gradients[:b], gradients[b + 1 :]])
        assert whole.snr.without[b].item() == pytest.approx(gradient_signal(rest).snr.value, rel=1e-10)
        assert line.without[b].item() == pytest.approx(direction_signal(rest[:, 0]).value, rel=1e-10)


def test_the_signal_is_unbiased_and_its_interval_covers_it() -> None:
    mean, dimension, repetitions = torch.zeros(20, dtype=torch.float64), 20, 300
    mean[0] = 1.5
    found = [gradient_signal(mean + normal(60, dimension, seed=seed)) for seed in range(repetitions)]
    squares = torch.tensor([f.mean_square for f in found])
    assert abs(squares.mean() - 2.25) < 3 * squares.std() / math.sqrt(repetitions)
    assert torch.tensor([f.noise for f in found]).mean().item() == pytest.approx(20, rel=0.02)
    inside = [low <= 2.25 / 20 <= high for low, high in (f.snr.interval for f in found)]
    assert 0.9 <= sum(inside) / repetitions <= 0.99
    # The errors are those of the repetitions themselves.
    spread = torch.tensor([f.snr.value for f in found]).std().item()
    assert sum(f.snr.error for f in found) / repetitions == pytest.approx(spread, rel=0.15)


def test_no_signal_has_mean_0_and_an_error_that_is_no_smaller_than_its_spread() -> None:
    found = [gradient_signal(normal(40, 30, seed=1000 + seed)).snr for seed in range(300)]
    values = torch.tensor([f.value for f in found])
    assert abs(values.mean()) < 3 * values.std() / math.sqrt(300)
    assert sum(f.error for f in found) / 300 >= values.std()


def test_z_along_a_direction_is_that_of_the_simulation() -> None:
    found = [direction_signal(0.3 + 2 * normal(100, seed=seed)) * 10 for seed in range(300)]
    values = torch.tensor([f.value for f in found])
    assert values.mean().item() == pytest.approx(1.5, abs=0.2)
    assert sum(f.error for f in found) / 300 == pytest.approx(values.std().item(), rel=0.1)


def test_differences_on_the_same_groups_are_paired() -> None:
    noise = normal(200, seed=1)
    one, other = direction_signal(0.3 + noise), direction_signal(0.1 + noise)
    assert (one - other).error < 0.2 * one.error
    assert (one - other).probability_positive() > 0.99
    assert (other - one).probability_positive() < 0.01
    assert (one - one).probability_positive() == 0.5


def test_the_other_half_gives_the_direction_without_the_own_noise() -> None:
    noise = normal(400, 50, seed=3)
    # A group's gradient is the reference itself: with the own half included this alone would look like signal.
    assert abs(direction_signal(half_batch_projections(noise, noise)).value) * 20 < 3
    signal = torch.zeros(50, dtype=torch.float64)
    signal[7] = 2.0
    assert direction_signal(half_batch_projections(signal + noise, signal + noise)).value == pytest.approx(2, rel=0.1)
    assert direction_signal(half_batch_projections(-signal + noise, signal + noise)).value < -1


def test_numbers_of_groups_are_infinite_where_no_signal_is_sure() -> None:
    sure = Jackknifed(0.25, torch.tensor([0.25, 0.25, 0.25]))
    assert groups_needed(sure) == (4, 4, 4)
    assert groups_needed(sure, 2) == (16, 16, 16)
    unsure = Jackknifed(0.25, torch.tensor([0.0, 0.25, 0.5]))
    value, low, high = groups_needed(unsure)
    assert value == 4 and 0 < low < 4 and high == math.inf
    assert groups_needed(Jackknifed(-0.1, torch.zeros(3)))[0] == math.inf


def test_steps_without_gradient_have_no_signal_and_no_error() -> None:
    found = gradient_signal(torch.zeros(5, 3))
    assert (found.snr.value, found.snr.error, found.noise) == (0, 0, 0)
    assert direction_signal(torch.zeros(5)).value == 0


def test_two_groups_are_refused() -> None:
    with pytest.raises(ValueError, match="needs three groups"):
        gradient_signal(torch.ones(2, 4))
    with pytest.raises(ValueError, match="needs three groups"):
        direction_signal(torch.ones(2))


# -- the projection ----------------------------------------------------------------------------------------------------


def test_products_survive_the_projection_on_average() -> None:
    one, other = normal(500, seed=1).float(), normal(500, seed=2).float() + 0.5
    found = []
    for seed in range(400):
        project = RandomProjection(500, 64, seed)
        found.append((project(one[None]) * project(other[None])).sum().item())
    products = torch.tensor(found)
    exact = (one @ other).item()
    assert abs(products.mean() - exact) < 3 * products.std() / 20
    predicted = math.sqrt((one.square().sum() * other.square().sum() + exact**2) / 64)
    assert products.std().item() == pytest.approx(predicted, rel=0.15)


def test_a_projection_is_linear_and_the_same_for_equal_keys() -> None:
    one, other = normal(90, seed=1).float(), normal(90, seed=2).float()
    project, again = RandomProjection(90, 16, 5, "a"), RandomProjection(90, 16, 5, "a")
    both = torch.stack([one, other])
    assert torch.equal(project(both)[:1], again(one[None]))
    torch.testing.assert_close(project(2 * one[None] - other), 2 * project(one[None]) - project(other[None]))
    assert not torch.equal(project(both), RandomProjection(90, 16, 6, "a")(both))


def test_short_vectors_are_kept() -> None:
    project = RandomProjection(6, 16, 1)
    assert project.exact and project.dimension == 6
    assert torch.equal(project(torch.arange(12.0).reshape(2, 6)), torch.arange(12.0).reshape(2, 6))
