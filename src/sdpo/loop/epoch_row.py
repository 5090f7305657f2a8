"""The row of metrics of an epoch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from sdpo.loop.collectives import Collectives
from sdpo.loop.counters import Counters
from sdpo.loop.divergence import NotFiniteError


@dataclass(frozen=True)
class EpochRewards:
    """The rewards of an epoch's images, on one process.

    Attributes:
        first: mixed rewards of the first steps' images, of any shape; None where none was scored.
        last: mixed rewards of the last steps' images, of any shape; None where none was scored.
        raw: mean raw score of the last steps' images, by reward.
    """

    first: Tensor | None
    last: Tensor | None
    raw: dict[str, Tensor]


OF_LOG_PROBABILITIES = ("train/clip_fraction", "train/on_policy_log_ratio")
"""Metrics that every row has, and that are null where nothing is learned from log-probabilities."""


def epoch_row(
    epoch: int,
    counters: Counters,
    update: Mapping[str, Tensor],
    rewards: EpochRewards,
    learning_rate: float,
    processes: Collectives,
) -> dict[str, Any]:
    """Make an epoch's row of `metrics.jsonl`.

    Args:
        epoch: the epoch, from 1.
        counters: the costs of the run up to and including the epoch.
        update: the metrics of the update by name, scalars.
        rewards: the rewards of this process's images.
        learning_rate: the learning rate of the next optimizer step.
        processes: the processes that share the epoch.

    Raises:
        NotFiniteError: naming the metrics that are not finite.
    """
    row: dict[str, Any] = {"epoch": epoch, **vars(counters)}
    for name, value in update.items():
        row[f"train/{name}"] = value.item()
    row |= {name: None for name in OF_LOG_PROBABILITIES if name not in row}
    row["train/learning_rate"] = learning_rate
    # A plan that scores the last step alone never looks at the first step's image.
    row["reward/first_step"] = None if rewards.first is None else processes.mean(rewards.first.mean()).item()
    row["reward/last_step"] = None if rewards.last is None else processes.mean(rewards.last.mean()).item()
    for name, value in rewards.raw.items():
        row[f"reward/{name}"] = processes.mean(value).item()
    bad = [name for name, value in row.items() if value is not None and not math.isfinite(value)]
    if bad:
        raise NotFiniteError(", ".join(bad))
    return row
