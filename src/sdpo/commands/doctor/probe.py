"""A few sampled groups, and the update's view of their steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sdpo.assembly import Parts
from sdpo.loop.step_batch import EpochData, StepEvaluator
from sdpo.method.types import Trajectories

GROUPS = 2
"""The number of groups that are sampled, each with a prompt of its own."""


@dataclass(frozen=True)
class Samples:
    """Images of the sampled trajectories' last steps.

    Attributes:
        latents: the predicted clean latents, [N, C, H, W].
        images: float32 [N, 3, H, W].
        prompts: the N prompts.
        metadata: the N metadata of the prompts.
    """

    latents: Tensor
    images: Tensor
    prompts: list[str]
    metadata: list[dict[str, Any]]


@dataclass(frozen=True)
class Probe:
    """Groups of trajectories, sampled by the parts of a run as its first epoch would sample them.

    Attributes:
        parts: the parts of the run.
        groups: the trajectories, one group each.
    """

    parts: Parts
    groups: Sequence[Trajectories]

    @classmethod
    def draw(cls, parts: Parts) -> Probe:
        """Sample the groups; every call draws the same ones.

        Args:
            parts: the parts of the run, which have `GROUPS` prompts.
        """
        return cls(parts, list(parts.rollout(parts.prompts, range(GROUPS), epoch=1, micro_batch=1)))

    @property
    def first(self) -> Trajectories:
        """The first group."""
        return self.groups[0]

    def log_prob(self, step: int, groups: int = 1) -> Tensor:
        """The log-probability of a step of the first group under the current policy, as the update computes it.

        Args:
            step: the step, from 0.
            groups: the number of copies of the group in the network call.

        Returns:
            The log-probabilities of the K branches, with gradient, [K].
        """
        parts, group = self.parts, self.first
        copies = replace(
            group,
            prompts=group.prompts * groups,
            states=group.states.expand(groups, *group.states.shape[1:]),
            log_prob=group.log_prob.expand(groups, *group.log_prob.shape[1:]),
            x0=None,
        )
        rows = parts.embeddings.rows(copies.prompts)
        data = EpochData(copies, torch.zeros_like(copies.log_prob), parts.denoiser, parts.embeddings, rows)
        evaluate = StepEvaluator(parts.policy)
        batch, _ = evaluate(data, slice(0, groups), torch.full((groups,), step))
        return batch.log_prob[0]

    def clean(self, step: int) -> Tensor:
        """The mean of x̂ at a step of the first group under the current policy, with gradient, [K]."""
        parts, x = self.parts, self.first.states[0, :, step]
        rows = parts.embeddings.rows(self.first.prompts * len(x))
        index = torch.full((len(x),), step, device=x.device)
        return parts.policy.transition(parts.denoiser, x, index, parts.embeddings.take(rows)).x0.flatten(1).mean(1)

    def decode(self) -> Samples:
        """Decode the images of the last steps of all trajectories."""
        kept, images, prompts, metadata = [], [], list[str](), list[dict[str, Any]]()
        for group in self.groups:
            assert group.x0 is not None, "a new group has its clean latents"
            latents = group.x0[:, :, -1].flatten(0, 1)
            kept.append(latents)
            images.append(self.parts.backbone.decode(latents))
            prompts += group.prompts * len(latents)
            metadata += group.metadata * len(latents)
        return Samples(torch.cat(kept), torch.cat(images), prompts, metadata)
