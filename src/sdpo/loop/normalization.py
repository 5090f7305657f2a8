"""Normalises the returns of an epoch over the groups of all processes."""

from __future__ import annotations

import torch
from torch import Tensor

from sdpo.errors import UserError
from sdpo.loop.all_groups import over_all_groups
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
    steps = _branched_steps(trajectories, processes)

    def checked(prompts: list[str], everyone: Tensor) -> Tensor:
        if steps is None:
            advantages = normalizer.update(prompts, everyone)
        else:
            advantages = normalizer.update_at(prompts, everyone[..., 0], steps)[..., None]
        if advantages.shape != everyone.shape or not advantages.isfinite().all():
            raise UserError(
                f"the normaliser {type(normalizer).__name__} returned shape {tuple(advantages.shape)}"
                f"{'' if advantages.isfinite().all() else ' with values that are not finite'}; return one finite "
                f"advantage for each return, shape {tuple(everyone.shape)}."
            )
        return advantages

    return over_all_groups(checked, returns, trajectories, processes)


def _branched_steps(trajectories: Trajectories, processes: Collectives) -> Tensor | None:
    """The step at which each group of all processes branches, by global sample index; None where they do not."""
    if trajectories.branched is None:
        return None
    own = list(zip(trajectories.sample_index.tolist(), trajectories.branched.step.tolist(), strict=True))
    return torch.tensor([step for _, step in sorted(processes.gather(own))])
