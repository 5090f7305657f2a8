"""The records of an update by reward gradients: its settings, its trajectories, its sums."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sdpo.backbones import Conditioning
from sdpo.loop.epoch_row import EpochRewards
from sdpo.loop.reward_head import Rewarded
from sdpo.loop.update_result import Metrics
from sdpo.method.denoisers import Denoiser


@dataclass(frozen=True)
class GradientSettings:
    """The settings of an epoch's update by reward gradients, on one process.

    Attributes:
        seed: the run's seed.
        batch_size: groups, which are single trajectories here, an optimizer step on this process.
        kl_weight: weight of the divergence of x̂ from the reference model's; 0 switches it off.
        loss_weight: factor of the whole loss, for a run that also makes policy updates.
        skip_nonfinite: count the optimizer steps that were skipped because a value was not finite.
    """

    seed: int
    batch_size: int
    kl_weight: float = 0.0
    loss_weight: float = 1.0
    skip_nonfinite: bool = False


@dataclass(frozen=True)
class TrajectoryStarts:
    """The starting noise of the n trajectories of a network call, and what they are sampled with.

    Attributes:
        rows: their places among the B of the epoch.
        texts: their prompts.
        metadata: the further fields of their prompts.
        indices: their global sample indices.
        epoch: the epoch.
        denoiser: their schedule of T steps.
        conditioning: the embeddings of their prompts.
        start: x_0, [n, C, H, W].
        noise: the noise of each step, [T, n, C, H, W].
    """

    rows: slice
    texts: list[str]
    metadata: list[dict[str, Any]]
    indices: list[int]
    epoch: int
    denoiser: Denoiser
    conditioning: Conditioning
    start: Tensor
    noise: Tensor

    def step(self, step: int) -> Tensor:
        """The index of a step for each of the n trajectories, int64 [n], on the device."""
        return torch.full((len(self.texts),), step, device=self.start.device)


@dataclass
class GradientTotals:
    """The sums of one minibatch, and the rewards of the whole epoch.

    Attributes:
        metrics: the metrics of the present minibatch.
        first: mixed rewards of first steps' images.
        last: mixed rewards of last steps' images.
        raw_last: raw scores of last steps' images by reward.
        observed: raw scores of the present minibatch by reward, for the running statistics.
    """

    metrics: Metrics = field(default_factory=dict)
    first: list[Tensor] = field(default_factory=list)
    last: list[Tensor] = field(default_factory=list)
    raw_last: dict[str, list[Tensor]] = field(default_factory=dict)
    observed: dict[str, list[Tensor]] = field(default_factory=dict)

    def add(self, name: str, value: Tensor) -> None:
        """Add to a metric of the minibatch."""
        self.metrics[name] = self.metrics[name] + value if name in self.metrics else value

    def rewarded(self, found: Rewarded, is_first: bool, is_last: bool) -> None:
        """Take in the rewards of n images of one step."""
        for name, values in found.raw.items():
            self.observed.setdefault(name, []).append(values)
            if is_last:
                self.raw_last.setdefault(name, []).append(values)
        if is_first:
            self.first.append(found.mixed)
        if is_last:
            self.last.append(found.mixed)

    def take_observed(self) -> dict[str, Tensor]:
        """The raw scores of the minibatch, [N] by reward, which are forgotten."""
        taken = {name: torch.cat(values) for name, values in self.observed.items()}
        self.observed = {}
        return taken

    def epoch_rewards(self) -> EpochRewards:
        """The rewards of the epoch's first and last images."""
        return EpochRewards(
            first=torch.cat(self.first) if self.first else None,
            last=torch.cat(self.last) if self.last else None,
            raw={name: torch.cat(values).mean() for name, values in self.raw_last.items()},
        )
