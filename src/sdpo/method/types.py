"""The records that flow through a training epoch, and the legend of their axes.

| axis | meaning |
|---|---|
| B | prompts (groups) in a batch |
| K | branches that share a prompt and a starting noise; 2 for SDPO |
| T | denoising steps of a trajectory; index 0 is the noisiest |
| C, H, W | latent channels, height, width |
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass
class Trajectories:
    """Dual-state trajectories of one epoch, on one process.

    Attributes:
        prompts: B prompts.
        metadata: B dictionaries that came with the prompts; they reach the reward.
        sample_index: global sample indices, int64 [B].
        states: noisy latents x_0 … x_T, [B, K, T+1, C, H, W].
        log_prob: log-probability of each step under the sampling policy, float32 [B, K, T].
        stochastic: which steps are random and so have a density, bool [T].
        x0: predicted clean latents, the second state, [B, K, T, C, H, W]; None once they are scored: the update needs
            none of them.
        shared_first_step: the branches' first step, the same in all of them, was one network evaluation a group.
    """

    prompts: list[str]
    metadata: list[dict[str, Any]]
    sample_index: Tensor
    states: Tensor
    log_prob: Tensor
    stochastic: Tensor
    x0: Tensor | None = None
    shared_first_step: bool = False

    @property
    def num_steps(self) -> int:
        """T."""
        return self.log_prob.shape[2]

    @staticmethod
    def collect(parts: Iterable[Trajectories], groups: int) -> Trajectories:
        """All B groups of several parts, in order, without x̂; holds one part at a time besides the whole."""
        whole: Trajectories | None = None
        for part in parts:
            if whole is None:
                whole = Trajectories(
                    prompts=[],
                    metadata=[],
                    sample_index=part.sample_index.new_empty(groups),
                    states=part.states.new_empty(groups, *part.states.shape[1:]),
                    log_prob=part.log_prob.new_empty(groups, *part.log_prob.shape[1:]),
                    stochastic=part.stochastic,
                    shared_first_step=part.shared_first_step,
                )
            rows = slice(len(whole.prompts), len(whole.prompts) + len(part.prompts))
            whole.prompts += part.prompts
            whole.metadata += part.metadata
            for name in ("sample_index", "states", "log_prob"):
                getattr(whole, name)[rows] = getattr(part, name)
        if whole is None or len(whole.prompts) != groups:
            raise ValueError(f"expected {groups} groups, got {len(whole.prompts) if whole else 0}")
        return whole


@dataclass
class StepBatch:
    """What an algorithm sees of a minibatch: one step of each of B groups.

    Attributes:
        log_prob: under the current policy, with gradient, [B, K].
        old_log_prob: under the policy that sampled, [B, K].
        advantage: [B, K].
        step_index: which step each group is at, int64 [B].
        mask: 1 where the step is stochastic, else 0, [B].
        reference_log_prob: under the base model, [B, K]; None unless the algorithm asks for it.
    """

    log_prob: Tensor
    old_log_prob: Tensor
    advantage: Tensor
    step_index: Tensor
    mask: Tensor
    reference_log_prob: Tensor | None = None


@dataclass
class TrajectoryBatch:
    """What an algorithm that judges trajectories as wholes sees of a minibatch.

    Attributes:
        log_prob: of each step under the current policy, with gradient, [B, K, T].
        old_log_prob: under the policy that sampled, [B, K, T].
        advantage: of the whole trajectory, [B, K].
        mask: 1 where the step counts: it is stochastic and the update visits it, [T].
    """

    log_prob: Tensor
    old_log_prob: Tensor
    advantage: Tensor
    mask: Tensor


@dataclass
class LossOutput:
    """A scalar loss with gradient, and detached scalar metrics."""

    loss: Tensor
    metrics: dict[str, Tensor] = field(default_factory=dict)
