"""Shares the network evaluation of the first step, where all branches of a group have one latent."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from sdpo.loop.visits import Visits


def shares_first_step(setting: Literal["auto"] | bool, *, shared_noise: bool, visits: Visits, num_steps: int) -> bool:
    """Whether the branches of a group share the network evaluation of the first step.

    `auto` shares where the update visits no other step: its network calls then have the same batches as those of
    sampling, so that the log-ratio before the first update stays exactly 0.

    Args:
        setting: `sample.share_first_step`.
        shared_noise: whether the branches of a group begin at one latent.
        visits: the schedule of the update's visits.
        num_steps: T.
    """
    if setting != "auto":
        return setting
    return shared_noise and visits.eligible(num_steps) == 1


def network_rows(step_of_row: Tensor, branches: int, shared_first_step: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """Find the latents of n groups, each at its own step, that the network must see.

    Args:
        step_of_row: the step of each group, int64 [n], on the CPU.
        branches: K.
        shared_first_step: whether a group's branches share the evaluation of the first step.

    Returns:
        The group and the branch of M latents, int64 [M] each; and the place among the M of each of the n K latents in
        order, int64 [n K], or None where all n K are evaluated.
    """
    counts = torch.full_like(step_of_row, branches)
    if shared_first_step:
        counts[step_of_row == 0] = 1
    group = torch.arange(len(step_of_row)).repeat_interleave(counts)
    first = counts.cumsum(0) - counts
    branch = torch.arange(len(group)) - first[group]
    if len(group) == len(step_of_row) * branches:
        return group, branch, None
    place = first[:, None] + torch.minimum(torch.arange(branches), counts[:, None] - 1)
    return group, branch, place.flatten()
