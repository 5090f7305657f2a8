"""The row of metrics of an epoch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from sdpo.loop.collectives import Collectives
from sdpo.loop.counters import Counters
from sdpo.loop.divergence import NotFiniteError
from sdpo.loop.scoring import Scores


def epoch_row(
    epoch: int,
    counters: Counters,
    update: Mapping[str, Tensor],
    scores: Scores,
    learning_rate: float,
    processes: Collectives,
) -> dict[str, Any]:
    """Make an epoch's row of `metrics.jsonl`.

    Args:
        epoch: the epoch, from 1.
        counters: the costs of the run up to and including the epoch.
        update: the metrics of the update by name, scalars.
        scores: the scores of this process's trajectories.
        learning_rate: the learning rate of the next optimizer step.
        processes: the processes that share the epoch.

    Raises:
        NotFiniteError: naming the metrics that are not finite.
    """
    row: dict[str, Any] = {"epoch": epoch, **vars(counters)}
    for name, value in update.items():
        row[f"train/{name}"] = value.item()
    row["train/learning_rate"] = learning_rate
    # A plan that scores the last step alone never looks at the first step's image.
    row["reward/first_step"] = None if scores.first is None else processes.mean(scores.first.mean()).item()
    row["reward/last_step"] = processes.mean(scores.last.mean()).item()
    for name, value in scores.raw.items():
        row[f"reward/{name}"] = processes.mean(value).item()
    bad = [name for name, value in row.items() if value is not None and not math.isfinite(value)]
    if bad:
        raise NotFiniteError(", ".join(bad))
    return row
