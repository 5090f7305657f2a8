"""Turns the dense rewards of an epoch into returns, by the credit rule of the algorithm."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from sdpo.loop.all_groups import over_all_groups
from sdpo.loop.collectives import Collectives
from sdpo.method.algorithms import Algorithm
from sdpo.method.types import Trajectories


def epoch_returns(
    algorithm: Algorithm[Any], dense: Tensor, trajectories: Trajectories, processes: Collectives
) -> Tensor:
    """Turn dense rewards into returns; a credit rule that compares groups gets those of all processes.

    Args:
        algorithm: the algorithm with its credit rule.
        dense: the dense rewards of this process's groups, float32 [B, K, T].
        trajectories: the B groups.
        processes: the processes that share the epoch.

    Returns:
        The returns of this process's groups, float32 [B, K, T].

    Raises:
        UserError: if the credit rule returns another shape.
    """
    if algorithm.credit.min_groups == 1:
        return algorithm.returns(dense)
    return over_all_groups(lambda _, everyone: algorithm.returns(everyone), dense, trajectories, processes)
