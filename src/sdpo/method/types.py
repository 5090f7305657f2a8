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
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class Trajectories:
    """The dual-state trajectories of one epoch, on one process.

    Attributes:
        prompts: B prompts.
        metadata: B dictionaries that came with the prompts; they reach the reward.
        sample_index: global sample indices, int64 [B].
        states: noisy latents x_0 … x_T, [B, K, T+1, C, H, W].
        log_prob: log-probability of each step under the sampling policy, float32 [B, K, T].
        stochastic: which steps are random and so have a density, bool [T].
        x0: predicted clean latents, the second state, [B, K, T, C, H, W]; None once they are scored, as the update does
            not need them.
        shared_first_step: whether the branches' first step, which is the same in all of them, was one network
            evaluation a group.
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
        """T, the denoising steps of a trajectory."""
        return self.log_prob.shape[2]

    @staticmethod
    def collect(parts: Iterable[Trajectories], groups: int) -> Trajectories:
        """Concatenate parts to B groups, in order and without x̂; one part at a time is held besides the whole.

        Args:
            parts: trajectories of some groups each.
            groups: B, the groups of all parts together.

        Raises:
            ValueError: if the parts do not add up to B groups.
        """
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
    """A minibatch for an algorithm that judges single steps: one step of each of B groups.

    Attributes:
        log_prob: log-probability under the current policy, mean over latent elements, with gradient, [B, K].
        old_log_prob: log-probability under the policy that sampled, [B, K].
        advantage: advantage of the step, [B, K].
        step_index: the step that each group is at, int64 [B].
        mask: 1 where the step is stochastic, else 0, [B].
        reference_log_prob: log-probability under the reference model, [B, K]; None unless the algorithm asks for it by
            `needs_reference`.
    """

    log_prob: Tensor
    old_log_prob: Tensor
    advantage: Tensor
    step_index: Tensor
    mask: Tensor
    reference_log_prob: Tensor | None = None


@dataclass
class TrajectoryBatch:
    """A minibatch for an algorithm that judges trajectories as wholes: all steps of each of B groups.

    Attributes:
        log_prob: log-probability of each step under the current policy, with gradient, [B, K, T].
        old_log_prob: log-probability of each step under the policy that sampled, [B, K, T].
        advantage: advantage of the whole trajectory, [B, K].
        mask: 1 where the step counts, because it is stochastic and the update visits it, else 0, [T].
        reference_log_prob: log-probability of each step under the reference model, [B, K, T]; None unless the algorithm
            asks for it by `needs_reference`.
    """

    log_prob: Tensor
    old_log_prob: Tensor
    advantage: Tensor
    mask: Tensor
    reference_log_prob: Tensor | None = None


@dataclass
class LossOutput:
    """The result of a loss.

    Attributes:
        loss: a scalar with gradient.
        metrics: detached scalars by name, which become `train/<name>` of the epoch's metrics.
    """

    loss: Tensor
    metrics: dict[str, Tensor] = field(default_factory=dict)
