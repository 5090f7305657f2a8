"""Normalises the returns of an epoch over the groups of all processes."""

from __future__ import annotations

import torch
from torch import Tensor

from sdpo.errors import UserError
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

    Raises:
        UserError: if the normaliser returns another shape, or values that are not finite.
    """
    own = list(zip(trajectories.sample_index.tolist(), trajectories.prompts, returns.cpu(), strict=True))
    everyone = sorted(processes.gather(own), key=lambda item: item[0])
    stacked = torch.stack([r for _, _, r in everyone])
    advantages = normalizer.update([prompt for _, prompt, _ in everyone], stacked)
    if advantages.shape != stacked.shape or not advantages.isfinite().all():
        raise UserError(
            f"the normaliser {type(normalizer).__name__} returned shape {tuple(advantages.shape)}"
            f"{'' if advantages.isfinite().all() else ' with values that are not finite'}; return one finite advantage "
            f"for each return, shape {tuple(stacked.shape)}."
        )
    place = {index: i for i, (index, _, _) in enumerate(everyone)}
    return advantages[[place[index] for index, _, _ in own]].to(returns.device, torch.float32)
