"""The network evaluations and images that an update by reward gradients takes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sdpo.method.algorithms.reward_gradient import Term


@dataclass(frozen=True)
class TrajectoryCost:
    """The cost of one trajectory of an update.

    Attributes:
        rewarded: images that are rewarded.
        forward: network evaluations without gradient.
        backward: network evaluations with gradient.
    """

    rewarded: int
    forward: int
    backward: int


def gradient_evaluations(terms: Sequence[Term]) -> TrajectoryCost:
    """Count what the terms of an update cost for each trajectory, a penalty on the divergence left out."""
    rewarded, steps = sum(1 + term.redraws for term in terms), max(term.step for term in terms) + 1
    if climbs_while_sampling(terms):
        return TrajectoryCost(rewarded, steps - len(terms), rewarded)
    return TrajectoryCost(rewarded, steps, sum(map(_length, chains_of(terms))))


def climbs_while_sampling(terms: Iterable[Term]) -> bool:
    """Whether each gradient passes one evaluation, which can be the one that samples."""
    return all(term.through == 1 for term in terms)


def chains_of(terms: Iterable[Term]) -> list[list[Term]]:
    """Terms whose gradients end at the same step, which are carried back together."""
    found: dict[int, list[Term]] = {}
    for term in terms:
        found.setdefault(term.first, []).append(term)
    return list(found.values())


def _length(chain: Sequence[Term]) -> int:
    """The network evaluations of a chain."""
    return max(term.step for term in chain) - chain[0].first + 1
