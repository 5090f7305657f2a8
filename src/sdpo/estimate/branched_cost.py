"""The cost of sampling groups that branch at one step, counted over the steps that a run will draw."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sdpo.config import Config
from sdpo.config.branching_checks import branching_of
from sdpo.method.algorithms import Algorithm


@dataclass(frozen=True)
class BranchedCost:
    """The cost of sampling in all epochs of a run, over all processes.

    Attributes:
        evaluations: evaluations of the network for one latent each, without guidance.
        queries: images that the rewards score, at most.
    """

    evaluations: int
    queries: int


def branched_cost(config: Config, algorithm: Algorithm[Any]) -> BranchedCost:
    """Count what sampling costs; a group's step is drawn from the seed, the epoch and its index, as in the run itself.

    Args:
        config: the configuration of a run whose branches part at one step.
        algorithm: its algorithm of policy updates.
    """
    branching, plan, branches = branching_of(config.sample), algorithm.reward_plan, algorithm.branches
    assert branching is not None, "the branches part at one step"
    evaluations = queries = 0
    for epoch in range(1, config.epochs + 1):
        steps = branching.draw(config.seed, epoch, range(config.sample.prompts_per_epoch))
        evaluations += branching.evaluations(steps, branches)
        seen, counts = branching.seen(steps).unique(return_counts=True)
        for images, count in zip(seen.tolist(), counts.tolist(), strict=True):
            # The image at which the branches part is scored once a group.
            shared = (branches - 1) * plan.queries_first_step(images)
            queries += count * (branches * plan.max_queries(images) - shared)
    return BranchedCost(evaluations, queries)
