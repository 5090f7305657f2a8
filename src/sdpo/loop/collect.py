"""Scores trajectories while they are sampled, and turns their rewards into advantages over all processes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from sdpo.loop.divergence import check_trajectories
from sdpo.loop.scoring import Scorer, Scores
from sdpo.method.advantages import Normalizer
from sdpo.method.types import Trajectories

Gather = Callable[[list[Any]], list[Any]]
"""Collects the items of all processes, by rank."""


def sample_and_score(sampled: Iterable[Trajectories], scorer: Scorer, groups: int) -> tuple[Trajectories, Scores]:
    """Score each part when it has been sampled; a remote reward works while the next part is sampled.

    Args:
        sampled: parts of this process's trajectories.
        scorer: scores them.
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


def gather_scores(scores: Mapping[str, Tensor], gather: Gather) -> dict[str, Tensor]:
    """Concatenate the scores of all processes by reward, on the CPU."""
    everyone = gather([{name: values.cpu() for name, values in scores.items()}])
    return {name: torch.cat([part[name] for part in everyone]) for name in scores}


def normalize(returns: Tensor, trajectories: Trajectories, normalizer: Normalizer, gather: Gather) -> Tensor:
    """Turn returns into advantages; the normaliser sees the groups of all processes, by their global sample index.

    Args:
        returns: the returns of this process's groups, [B, K, T].
        trajectories: the B groups.
        normalizer: has a state that all processes keep alike.
        gather: collects the items of all processes.

    Returns:
        The advantages of this process's groups, float32 [B, K, T].
    """
    own = list(zip(trajectories.sample_index.tolist(), trajectories.prompts, returns.cpu(), strict=True))
    everyone = sorted(gather(own), key=lambda item: item[0])
    advantages = normalizer.update([prompt for _, prompt, _ in everyone], torch.stack([r for _, _, r in everyone]))
    place = {index: i for i, (index, _, _) in enumerate(everyone)}
    return advantages[[place[index] for index, _, _ in own]].to(returns.device)
