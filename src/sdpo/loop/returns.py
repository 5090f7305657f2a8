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

    Groups that branch at one step have the return of that step alone. The rule gets the rewards from that step on, as
    if the trajectory began there.

    Args:
        algorithm: the algorithm with its credit rule.
        dense: the dense rewards of this process's groups, float32 [B, K, T]; of groups that branch at one step those of
            the W images from that step on, [B, K, W].
        trajectories: the B groups.
        processes: the processes that share the epoch.

    Returns:
        The returns of this process's groups at each recorded step, float32 [B, K, T].

    Raises:
        UserError: if the credit rule returns another shape.
    """
    if trajectories.branched is not None:
        returns = dense.new_empty(*dense.shape[:2], 1)
        for seen, rows in trajectories.branched.rows_by_seen():
            returns[rows] = algorithm.returns(dense[rows, :, :seen])[..., :1]
        return returns
    if algorithm.credit.min_groups == 1:
        return algorithm.returns(dense)
    return over_all_groups(lambda _, everyone: algorithm.returns(everyone), dense, trajectories, processes)
