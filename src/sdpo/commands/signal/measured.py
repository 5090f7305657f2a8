"""The measured signal of one alternative, and its JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sdpo.commands.signal.alternatives import Alternative
from sdpo.method.signal import (
    GradientSignal,
    Jackknifed,
    direction_signal,
    gradient_signal,
    groups_needed,
    half_batch_projections,
)

REFERENCE = "reference"
"""The name of the direction that stands in where rewards have no gradient."""


@dataclass(frozen=True)
class Measured:
    """The signal of one alternative.

    Attributes:
        alternative: the alternative.
        groups: n, the groups that it was measured on.
        by_step: the signal in any direction of each step's gradient, T of them.
        all_steps: that of the sum over the steps.
        towards: ρ of the sum over the steps, by direction.
        towards_by_step: ρ of each step, by direction.
    """

    alternative: Alternative
    groups: int
    by_step: Sequence[GradientSignal]
    all_steps: GradientSignal
    towards: Mapping[str, Jackknifed]
    towards_by_step: Mapping[str, Sequence[Jackknifed]]

    def z(self, direction: str) -> Jackknifed:
        """The z-score of all groups towards a direction."""
        return self.towards[direction] * math.sqrt(self.groups)

    def per_trajectory(self, direction: str) -> Jackknifed:
        """ρ / √K: what alternatives of different numbers of branches are compared by, at equal samples."""
        return self.towards[direction] * (1 / math.sqrt(self.alternative.branches))

    def as_json(self) -> dict[str, Any]:
        """The entry of `alternatives` in `signal.json`."""
        own, scale = self.alternative, math.sqrt(self.groups)
        directions = {}
        for name, ratio in self.towards.items():
            z, steps = self.z(name), [scale * step.value for step in self.towards_by_step[name]]
            directions[name] = {
                "z": z.value,
                "z_error": z.error,
                **_needed(ratio, 2, own.branches),
                "z_by_step": steps,
            }
        return {
            "name": own.name,
            "credit": own.credit,
            "plan": own.plan,
            "branches": own.branches,
            "any_direction": {**_any_direction(self.all_steps, own.branches)},
            "any_direction_by_step": [_any_direction(signal, own.branches) for signal in self.by_step],
            "towards": directions,
        }


def _any_direction(signal: GradientSignal, branches: int) -> dict[str, Any]:
    low, high = signal.snr.interval
    return {"snr": signal.snr.value, "snr_interval": [low, high], **_needed(signal.snr, 1, branches)}


def _needed(ratio: Jackknifed, power: int, branches: int) -> dict[str, Any]:
    """The groups and samples at which signal equals noise; null stands for no finite number."""
    value, low, high = (None if math.isinf(number) else number for number in groups_needed(ratio, power))
    samples = [None if number is None else branches * number for number in (value, low, high)]
    return {"groups": value, "groups_interval": [low, high], "samples": samples[0], "samples_interval": samples[1:]}


def measure(
    alternative: Alternative,
    factors: Tensor,
    projected: Tensor,
    along: Tensor,
    directions: Sequence[str],
    reference: Tensor | None,
) -> Measured:
    """Combine scores with an alternative's weights, and measure the gradients' signal.

    Args:
        alternative: the alternative.
        factors: the weights of the scores, float32 [n, K', T].
        projected: the projected scores of all branches, float32 [n, K, T, D].
        along: the scores along the known directions, float64 [n, K, T, N].
        directions: the names of the N directions.
        reference: where there is no known direction, the gradients of the reference credit by step, [n, T, D].
    """
    by_step = combine(factors, projected)
    towards: dict[str, Jackknifed] = {}
    each: dict[str, list[Jackknifed]] = {}
    if reference is not None:
        whole = reference.sum(1)
        towards[REFERENCE] = direction_signal(half_batch_projections(by_step.sum(1), whole))
        each[REFERENCE] = [direction_signal(half_batch_projections(g, whole)) for g in by_step.unbind(1)]
    known = torch.einsum("bkt,bktn->btn", factors.double(), along[:, : factors.shape[1]])
    for name, values in zip(directions, known.unbind(-1), strict=True):
        towards[name] = direction_signal(values.sum(1))
        each[name] = [direction_signal(step) for step in values.unbind(1)]
    signals = [gradient_signal(step) for step in by_step.unbind(1)]
    return Measured(alternative, len(factors), signals, gradient_signal(by_step.sum(1)), towards, each)


def combine(factors: Tensor, projected: Tensor) -> Tensor:
    """Return each group's gradient by step, Σ_k f_{bki} S∇ℓ_{bki}, float32 [n, T, D]."""
    return torch.einsum("bkt,bktd->btd", factors, projected[:, : factors.shape[1]])
