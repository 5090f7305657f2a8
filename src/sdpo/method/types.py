"""The records that flow through a training epoch, and the legend of their axes.

| axis | meaning |
|---|---|
| B | prompts (groups) in a batch |
| K | branches that share a prompt and a starting noise; 2 for SDPO |
| T | denoising steps of a trajectory; index 0 is the noisiest |
| C, H, W | latent channels, height, width |
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sdpo.method.lazy_torch import torch

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class BranchPoints:
    """The step at which the branches of each group part, and how far they are followed (`method.branching`).

    Attributes:
        step: i of each group, a step of the schedule, int64 [B], on the CPU.
        seen: number of predicted clean latents of each branch from step i on, int64 [B], on the CPU.
    """

    step: Tensor
    seen: Tensor

    @classmethod
    def joined(cls, parts: Sequence[BranchPoints]) -> BranchPoints:
        """Concatenate those of several parts of the groups."""
        return cls(torch.cat([part.step for part in parts]), torch.cat([part.seen for part in parts]))

    def rows_by_seen(self) -> Iterator[tuple[int, Tensor]]:
        """Yield each number of predicted clean latents that occurs, ascending, and its groups, int64 [n]."""
        for seen in self.seen.unique().tolist():
            yield seen, (self.seen == seen).nonzero().flatten()


@dataclass
class Trajectories:
    """The dual-state trajectories of one epoch, on one process.

    Groups that branch at one step are recorded at that step alone: T is then 1 in `states` and `log_prob`, and `x0`
    begins with the step's x̂, ends with zeros where a group was followed less far, and has as many x̂ as the longest.

    Attributes:
        prompts: B prompts.
        metadata: B dictionaries that came with the prompts; they reach the reward.
        sample_index: global sample indices, int64 [B].
        states: noisy latents x_0 … x_T, [B, K, T+1, C, H, W].
        log_prob: log-probability of each step under the sampling policy, float32 [B, K, T].
        stochastic: which steps of the schedule are random and so have a density, bool [T].
        x0: predicted clean latents, the second state, [B, K, T, C, H, W]; None once they are scored, as the update does
            not need them.
        shared_first_step: whether the branches' first step, which is the same in all of them, was one network
            evaluation a group. It is the step at which they part where they branch at one.
        branched: where the groups branch at one step; None where all steps are recorded.
    """

    prompts: list[str]
    metadata: list[dict[str, Any]]
    sample_index: Tensor
    states: Tensor
    log_prob: Tensor
    stochastic: Tensor
    x0: Tensor | None = None
    shared_first_step: bool = False
    branched: BranchPoints | None = None

    @property
    def num_steps(self) -> int:
        """T, the recorded steps of a trajectory: all denoising steps, or the one at which branches part."""
        return self.log_prob.shape[2]

    def schedule_steps(self, rows: slice, recorded: Tensor) -> Tensor:
        """Find the steps of the schedule that recorded steps are.

        Args:
            rows: n groups among the B.
            recorded: a recorded step of each of them, int64 [n], on the CPU.

        Returns:
            int64 [n], on the CPU.
        """
        return recorded if self.branched is None else self.branched.step[rows]

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
        points: list[BranchPoints] = []
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
            if part.branched is not None:
                points.append(part.branched)
        if whole is None or len(whole.prompts) != groups:
            raise ValueError(f"expected {groups} groups, got {len(whole.prompts) if whole else 0}")
        if points:
            whole.branched = BranchPoints.joined(points)
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
