"""Scores trajectories while they are sampled."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor

from sdpo.loop.collectives import Collectives
from sdpo.loop.divergence import check_trajectories
from sdpo.loop.scoring import Scorer, Scores
from sdpo.method.types import Trajectories


def sample_and_score(sampled: Iterable[Trajectories], scorer: Scorer, groups: int) -> tuple[Trajectories, Scores]:
    """Score each part of an epoch as soon as it is sampled; remote rewards work while the next part is sampled.

    Args:
        sampled: the parts of this process's trajectories, in order.
        scorer: the scorer of the epoch.
        groups: the number of groups in all parts.

    Returns:
        All groups in order, without x̂, and their scores.

    Raises:
        NotFiniteError: if a trajectory is not finite.
        DivergenceError: if an image is not finite.
        RewardError: if a reward fails.
    """

    def scored() -> Iterator[Trajectories]:
        for part in sampled:
            check_trajectories(part)
            scorer.add(part)
            yield part

    return Trajectories.collect(scored(), groups), scorer.finish()


def gather_scores(scores: Mapping[str, Tensor], processes: Collectives) -> dict[str, Tensor]:
    """Concatenate raw scores [N] by reward over all processes, on the CPU."""
    everyone = processes.gather([{name: values.cpu() for name, values in scores.items()}])
    return {name: torch.cat([part[name] for part in everyone]) for name in scores}
