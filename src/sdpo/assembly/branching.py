"""Branching at one step, as the settings ask for it: what samples such groups, and what a model or a launch refuses."""

from __future__ import annotations

import torch

from sdpo.backbones import Backbone
from sdpo.config import Config
from sdpo.config.branching_checks import branching_of
from sdpo.distributed.launch import Sharding
from sdpo.errors import UserError
from sdpo.loop.branched_rollout import BranchedRollout
from sdpo.loop.policy import Policy, PromptEmbeddings
from sdpo.method.denoisers import Denoiser

_ADVICE = "set sample.after_branch=common, which draws the same noise in all branches"


def steps_after_branching(
    config: Config, backbone: Backbone, denoiser: Denoiser, sharding: Sharding | None
) -> Denoiser | None:
    """Make the schedule of the steps after the one at which branches part; None where they part at no single step.

    Args:
        config: the configuration of a run.
        backbone: the model.
        denoiser: the schedule that is trained on.
        sharding: the sharding that the launch asks for; None shards nothing.

    Raises:
        UserError: if branches would part at a step without noise, the model's sampler has no deterministic steps where
            they are asked for, or the processes of a sharded network would make different numbers of network calls.
    """
    branching = branching_of(config.sample)
    if branching is None:
        return None
    if sharding is not None and sharding.shards_weights and len(branching.steps) > 1:
        raise UserError(
            f"sample.branch_at=random with weights that are sharded by {sharding.name}: the processes would make "
            "different numbers of network calls, and wait for each other for ever. Name a step (sample.branch_at=0), "
            "or launch without sharding the weights"
        )
    quiet = [step for step in branching.steps if not denoiser.stochastic[step]]
    if quiet:
        raise UserError(
            f"sample.branch_at={config.sample.branch_at}: step {', '.join(map(str, quiet))} of this model's schedule "
            "draws no noise, by which branches could part: choose other steps, or give these the weight 0"
        )
    return denoiser if branching.after != "none" else _deterministic(backbone, denoiser)


def _deterministic(backbone: Backbone, denoiser: Denoiser) -> Denoiser:
    """The same schedule without noise."""
    try:
        quiet = backbone.denoiser(denoiser.num_steps, 0.0)
    except UserError as error:
        raise no_deterministic_steps(str(error)) from error
    # Compared on the host: the steps that follow must be given the latents that the branching step leaves behind.
    same = torch.equal(quiet.timesteps.cpu(), denoiser.timesteps.cpu())
    if not same or not torch.allclose(quiet.levels.cpu(), denoiser.levels.cpu(), atol=1e-5):
        raise UserError(
            "sample.after_branch=none: this model's sampler has other timesteps or noise levels without noise than "
            f"with it: {_ADVICE}"
        )
    return quiet


def no_deterministic_steps(why: str) -> UserError:
    """The error where deterministic steps are asked for after the branching step, and the sampler has none."""
    return UserError(
        f"sample.after_branch=none asks for deterministic steps, which this model's sampler does not have ({why}): "
        f"{_ADVICE}"
    )


def make_branched_rollout(
    config: Config, policy: Policy, embeddings: PromptEmbeddings, denoiser: Denoiser, following: Denoiser | None
) -> BranchedRollout | None:
    """Make what samples groups that branch at one step; None where `sample.branch_at` is null.

    Args:
        config: the configuration of a run.
        policy: the sampling policy.
        embeddings: the embeddings of the prompts.
        denoiser: the schedule that is trained on.
        following: the steps after the one at which branches part.
    """
    branching = branching_of(config.sample)
    if branching is None or following is None:
        return None
    branches = config.build_algorithm().branches
    return BranchedRollout(policy, embeddings, branching, denoiser, following, branches, config.seed)
