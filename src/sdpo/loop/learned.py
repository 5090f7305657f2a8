"""The outcome of an epoch's updates on one process, of whichever kind they were."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sdpo.loop.counters import Counters
from sdpo.loop.epoch_row import EpochRewards
from sdpo.loop.scoring import Scores
from sdpo.loop.update_result import Metrics
from sdpo.method.types import Trajectories


@dataclass(frozen=True)
class Learned:
    """The outcome of an epoch's updates.

    Attributes:
        metrics: the metrics of the updates, scalars on the device.
        rewards: the rewards of the epoch's images.
        images: number of trajectories that were sampled.
        queries: number of images that were scored.
    """

    metrics: Metrics
    rewards: EpochRewards
    images: int
    queries: int

    @classmethod
    def from_policy(cls, metrics: Metrics, trajectories: Trajectories, scores: Scores) -> Learned:
        """The outcome of a policy update."""
        rewards = EpochRewards(scores.first, scores.last, scores.raw)
        return cls(metrics, rewards, trajectories.log_prob[..., 0].numel(), scores.queries)

    def costs(self, evaluations: int, seconds: float) -> Counters:
        """The costs of the epoch, given its network evaluations and seconds."""
        return Counters(self.images, self.queries, evaluations, seconds)

    @classmethod
    def joined(cls, parts: Sequence[Learned]) -> Learned:
        """The outcome of all updates of an epoch.

        Where there are two, the metrics of the second are named `gradient_…`, and mixed rewards are those of the first.
        """
        first, *others = parts
        metrics, raw = dict(first.metrics), dict(first.rewards.raw)
        for other in others:
            metrics |= {f"gradient_{name}": value for name, value in other.metrics.items()}
            raw |= other.rewards.raw
        rewards = EpochRewards(first.rewards.first, first.rewards.last, raw)
        return cls(metrics, rewards, sum(part.images for part in parts), sum(part.queries for part in parts))
