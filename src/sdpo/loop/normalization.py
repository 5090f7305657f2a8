"""Normalises the returns of an epoch over the groups of all processes."""

from __future__ import annotations

import torch
from torch import Tensor

from sdpo.loop.collectives import Collectives
from sdpo.method.advantages import Normalizer
from sdpo.method.types import Trajectories


def normalize(returns: Tensor, trajectories: Trajectories, normalizer: Normalizer, processes: Collectives) -> Tensor:
    """Turn returns into advantages; the normaliser gets the groups of all processes, by global sample index.

    Args:
        returns: the returns of this process's groups, float32 [B, K, T].
        trajectories: the B groups.
        normalizer: the normaliser, whose state is equal on all processes.
        processes: the processes that share the epoch.

    Returns:
        The advantages of this process's groups, float32 [B, K, T].
    """
    own = list(zip(trajectories.sample_index.tolist(), trajectories.prompts, returns.cpu(), strict=True))
    everyone = sorted(processes.gather(own), key=lambda item: item[0])
    advantages = normalizer.update([prompt for _, prompt, _ in everyone], torch.stack([r for _, _, r in everyone]))
    place = {index: i for i, (index, _, _) in enumerate(everyone)}
    return advantages[[place[index] for index, _, _ in own]].to(returns.device)
