"""The costs of a run: trajectories, reward queries, network evaluations and seconds."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sdpo.loop.collectives import Collectives


@dataclass(frozen=True)
class Counters:
    """The costs of a run so far, over all processes.

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

    def plus(self, spent: Counters, processes: Collectives) -> Counters:
        """Add the costs of an epoch.

        Args:
            spent: the costs of the epoch on this process. Counts are summed over all processes; the seconds are not, as
                the processes work at the same time.
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
