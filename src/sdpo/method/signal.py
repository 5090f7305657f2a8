"""Statistics of how much of a policy gradient is signal: U-statistics over independent groups, with jackknife errors.

g_1 … g_n are the gradient estimates of n independent groups at fixed weights, with mean G = E g and covariance Σ.

- In any direction: SNR = ‖G‖² / tr Σ of one group. Its inverse is the number of groups at which a batch's mean gradient
  has as much signal as noise, the simple noise scale of McCandlish et al. 2018 (arXiv 1812.06162).
- Towards a direction u that is known apart: ρ = E⟨g, u⟩ / std⟨g, u⟩ of one group; ρ √n is the z-score of n groups.

Errors are those of the delete-one jackknife (Efron and Stein 1981), which is conservative where there is no signal. All
alternatives that are measured on the same groups leave the same group out at a time, so that differences between them
have errors of their own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

_NORMAL_95 = 1.959964  # half of a 95 % interval in standard errors


@dataclass(frozen=True)
class Jackknifed:
    """A statistic of n groups, and its values without each of them.

    Attributes:
        value: the statistic of all groups.
        without: the statistic without group b, float64 [n].
    """

    value: float
    without: Tensor

    @property
    def error(self) -> float:
        """The standard error: √((n−1)/n Σ_b (θ_(b) − mean θ)²)."""
        deviations = self.without - self.without.mean()
        return math.sqrt((len(self.without) - 1) * deviations.square().mean().item())

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of a normal distribution."""
        half = _NORMAL_95 * self.error
        return self.value - half, self.value + half

    def __mul__(self, factor: float) -> Jackknifed:
        return Jackknifed(factor * self.value, factor * self.without)

    def __sub__(self, other: Jackknifed) -> Jackknifed:
        """The difference of two statistics of the same groups."""
        return Jackknifed(self.value - other.value, self.without - other.without)

    def probability_positive(self) -> float:
        """The probability that the true value is above 0, under a normal error and no prior knowledge."""
        if self.error == 0:
            return 0.5 if self.value == 0 else float(self.value > 0)
        return 0.5 * (1 + math.erf(self.value / self.error / math.sqrt(2)))


@dataclass(frozen=True)
class GradientSignal:
    """The signal of a group's gradient in any direction.

    Attributes:
        mean_square: ‖E g‖², without bias; it can be negative where there is little signal.
        noise: tr Cov(g) of one group, without bias.
        snr: ‖E g‖² / tr Cov(g).
    """

    mean_square: float
    noise: float
    snr: Jackknifed


def gradient_signal(gradients: Tensor) -> GradientSignal:
    """Estimate the signal-to-noise ratio of one group's gradient.

    The mean product of two different groups' gradients, (‖Σ_b g_b‖² − Σ_b ‖g_b‖²) / (n (n−1)), is a U-statistic of
    expectation ‖E g‖². It is the mean of ⟨g_a, g_b⟩ over all splits into independent half-batches.

    Args:
        gradients: the gradients of n ≥ 3 independent groups, [n, D].

    Raises:
        ValueError: if there are fewer than three groups.
    """
    values = _checked(gradients)
    count, total, squares = len(values), values.sum(0), values.square().sum(1)
    own = values @ total  # ⟨g_b, Σ g⟩
    whole, all_squares = total.square().sum(), squares.sum()
    mean_square, noise = _moments(whole, all_squares, count)
    # Without group b: ‖Σ g − g_b‖² = ‖Σ g‖² − 2⟨g_b, Σ g⟩ + ‖g_b‖².
    signals, noises = _moments(whole - 2 * own + squares, all_squares - squares, count - 1)
    snr = Jackknifed(_ratio(mean_square, noise).item(), _ratio(signals, noises))
    return GradientSignal(mean_square.item(), noise.item(), snr)


def direction_signal(projections: Tensor) -> Jackknifed:
    """ρ = mean / standard deviation of the groups' projections on one direction; times √n it is their z-score.

    Args:
        projections: ⟨g_b, u⟩ of n ≥ 3 independent groups, where u does not depend on them, [n].

    Raises:
        ValueError: if there are fewer than three groups.
    """
    values = _checked(projections)
    values = values / values.abs().max().clamp(min=torch.finfo(torch.float64).tiny)
    count, total, squares = len(values), values.sum(), values.square().sum()
    whole = _standardised(total, squares, count).item()
    return Jackknifed(whole, _standardised(total - values, squares - values.square(), count - 1))


def half_batch_projections(gradients: Tensor, reference: Tensor) -> Tensor:
    """Project each group's gradient on the direction of a reference gradient's mean over the *other* half of groups.

    It stands in for a known direction. The halves are the even and the odd groups; a group's projection is independent
    of the noise of its own reference.

    Args:
        gradients: the gradients of n groups, [n, D].
        reference: the gradients of the same groups by a reference estimator, [n, D].

    Returns:
        float64 [n].

    Raises:
        ValueError: if there are fewer than three groups.
    """
    values, others = _checked(gradients), _checked(reference)
    found = values.new_empty(len(values))
    for own, other in ((0, 1), (1, 0)):
        direction = others[other::2].mean(0)
        found[own::2] = values[own::2] @ torch.nn.functional.normalize(direction, dim=0)
    return found


def groups_needed(ratio: Jackknifed, power: int = 1) -> tuple[float, float, float]:
    """The number of groups at which signal equals noise, ratio^−power, with its 95 % interval.

    Args:
        ratio: `GradientSignal.snr` with the power 1, or ρ of `direction_signal` with the power 2.
        power: the power of the ratio that one group's share is.

    Returns:
        The number, its lower and its upper bound; infinite where the ratio, or the bound of it, is not above 0.
    """
    low, high = ratio.interval

    def number(value: float) -> float:
        return value**-power if value > 0 else math.inf

    return number(ratio.value), number(high), number(low)


def _checked(values: Tensor) -> Tensor:
    """The values in float64.

    Raises:
        ValueError: if there are fewer than three groups.
    """
    if len(values) < 3:
        raise ValueError(f"a jackknife of two-group products needs three groups, got {len(values)}")
    return values.detach().double()


def _moments(square_of_sum: Tensor, sum_of_squares: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """‖E g‖² and tr Cov(g) without bias, from ‖Σ g‖² and Σ ‖g‖² of `count` groups."""
    mean_square = (square_of_sum - sum_of_squares) / (count * (count - 1))
    return mean_square, sum_of_squares / count - mean_square


def _ratio(signal: Tensor, noise: Tensor) -> Tensor:
    """Signal / noise; 0 where all groups are 0, as at a step that is not trained."""
    return torch.where(noise > 0, signal / noise.where(noise > 0, 1.0), 0.0)


def _standardised(total: Tensor, squares: Tensor, count: int) -> Tensor:
    """Mean / standard deviation; 0 where nothing varies around 0."""
    mean = total / count
    variance = ((squares - count * mean.square()) / (count - 1)).clamp(min=0)
    return torch.where(variance > 0, mean / variance.where(variance > 0, 1.0).sqrt(), 0.0)
