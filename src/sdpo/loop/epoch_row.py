"""The counters of a run, and the row of metrics of an epoch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from sdpo.loop.divergence import NotFiniteError
from sdpo.loop.scoring import Scores


class Sharers(Protocol):
    """The processes that share an epoch."""

    count: int

    def mean(self, tensor: Tensor) -> Tensor:
        """The mean of a tensor over all processes."""


@dataclass(frozen=True)
class Counters:
    """What a run has spent so far, over all processes.

    Attributes:
        images: trajectories that were sampled for training.
        reward_queries: images that the trained rewards scored.
        denoiser_evaluations: evaluations of the network, for one latent each.
        seconds: time of all epochs, without evaluations.
    """

    images: int = 0
    reward_queries: int = 0
    denoiser_evaluations: int = 0
    seconds: float = 0.0

    def plus(self, spent: Counters, processes: Sharers) -> Counters:
        """Add what an epoch spent on all processes.

        Args:
            spent: what this process spent; its seconds count as those of all.
            processes: the processes that share the epoch.
        """
        counts = torch.tensor([spent.images, spent.reward_queries, spent.denoiser_evaluations], dtype=torch.float64)
        images, queries, evaluations = (round(n) for n in (processes.mean(counts) * processes.count).tolist())
        return Counters(
            self.images + images,
            self.reward_queries + queries,
            self.denoiser_evaluations + evaluations,
            self.seconds + spent.seconds,
        )


def epoch_row(
    epoch: int,
    counters: Counters,
    update: Mapping[str, Tensor],
    scores: Scores,
    learning_rate: float,
    mean: Callable[[Tensor], Tensor],
) -> dict[str, Any]:
    """The row of an epoch in `metrics.jsonl`.

    Args:
        epoch: the epoch, from 1.
        counters: what the run has spent so far.
        update: the metrics of the update, scalars.
        scores: the scores of this process's trajectories.
        learning_rate: the learning rate of the next optimizer step.
        mean: averages a tensor over all processes.

    Raises:
        NotFiniteError: naming the metrics that are not finite.
    """
    row: dict[str, Any] = {"epoch": epoch, **vars(counters)}
    for name, value in update.items():
        row[f"train/{name}"] = value.item()
    row["train/learning_rate"] = learning_rate
    # A plan that scores the last step alone never looks at the first step's image.
    row["reward/first_step"] = None if scores.first is None else mean(scores.first.mean()).item()
    row["reward/last_step"] = mean(scores.last.mean()).item()
    for name, value in scores.raw.items():
        row[f"reward/{name}"] = mean(value).item()
    bad = [name for name, value in row.items() if value is not None and not math.isfinite(value)]
    if bad:
        raise NotFiniteError(", ".join(bad))
    return row
