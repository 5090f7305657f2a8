"""Computes over the groups of all processes, by global sample index, so that their number changes no result."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sdpo.loop.collectives import Collectives
from sdpo.method.types import Trajectories


def over_all_groups(
    compute: Callable[[list[str], Tensor], Tensor], values: Tensor, trajectories: Trajectories, processes: Collectives
) -> Tensor:
    """Apply a function to the values of all groups of an epoch; every process computes the same.

    Args:
        compute: turns the prompts of all groups and their values, on the CPU, into tensors of the same shape.
        values: the values of this process's groups, [B, …].
        trajectories: the B groups.
        processes: the processes that share the epoch.

    Returns:
        The results of this process's groups, float32 [B, …], on the device of `values`.
    """
    own = list(zip(trajectories.sample_index.tolist(), trajectories.prompts, values.cpu(), strict=True))
    everyone = sorted(processes.gather(own), key=lambda item: item[0])
    results = compute([prompt for _, prompt, _ in everyone], torch.stack([v for _, _, v in everyone]))
    place = {index: i for i, (index, _, _) in enumerate(everyone)}
    return results[[place[index] for index, _, _ in own]].to(values.device, torch.float32)
