"""Groups of `Plane` that branch at one step."""

from __future__ import annotations

from collections.abc import Sequence

from sdpo.loop.branched_rollout import BranchedRollout
from sdpo.loop.policy import Policy, PromptEmbeddings
from sdpo.method.branching import Branching
from sdpo.method.types import Trajectories
from sdpo.prompts import Prompt


def branched_parts(
    policy: Policy,
    branching: Branching,
    sample_index: Sequence[int],
    *,
    branches: int = 2,
    micro_batch: int | None = None,
    epoch: int = 1,
) -> list[Trajectories]:
    """Groups of given sample indices with seed 0 and η = 1, each with a prompt of its own, with x̂."""
    denoiser = policy.backbone.denoiser(branching.num_steps, 1.0)
    following = policy.backbone.denoiser(branching.num_steps, 0.0) if branching.after == "none" else denoiser
    rollout = BranchedRollout(policy, PromptEmbeddings(policy.backbone), branching, denoiser, following, branches, 0)
    prompts = [Prompt(f"prompt {index}") for index in sample_index]
    return list(rollout(prompts, sample_index, epoch, micro_batch or len(sample_index)))


def branched_groups(policy: Policy, branching: Branching, groups: int, **options: int) -> Trajectories:
    """The same as the update takes them, in one piece and without x̂."""
    return Trajectories.collect(branched_parts(policy, branching, range(groups), **options), groups)
