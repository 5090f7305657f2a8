"""Refusals of `sdpo signal`: what has no policy gradient whose groups can be compared."""

from __future__ import annotations

import os

from sdpo.config import Config
from sdpo.errors import UserError

MIN_GROUPS = 8
"""The fewest groups: below, an error bar says nothing."""


def check_algorithm(config: Config) -> None:
    """Refuse algorithms without log-probabilities or branches, branching at one step, and several processes.

    Args:
        config: the configuration of a run.

    Raises:
        UserError: naming the setting, the reason and the fix.
    """
    name, algorithm = config.algorithm["name"], config.policy_algorithm()
    if algorithm is None or not algorithm.needs_log_prob:
        raise UserError(
            f"sdpo signal measures the gradient of log-probabilities, and algorithm={name} uses none: measure an "
            "algorithm of policy updates, such as algorithm=sdpo"
        )
    if algorithm.branches < 2:
        raise UserError(
            f"sdpo signal compares the branches of a group, and algorithm.branches is {algorithm.branches}: with one "
            "branch the only baseline is each prompt's history, which fixed weights do not have; set "
            "algorithm.branches=2 or more"
        )
    if config.sample.branch_at is not None:
        raise UserError(
            f"sdpo signal measures every step of trajectories whose branches part at the first one, and "
            f"sample.branch_at is {config.sample.branch_at}: set sample.branch_at=null"
        )
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("sdpo signal runs in one process: start it without accelerate launch")


def check_groups(groups: int) -> None:
    """Refuse too few groups.

    Raises:
        UserError: naming the fewest.
    """
    if groups < MIN_GROUPS:
        raise UserError(f"--groups {groups}: use {MIN_GROUPS} or more, as errors are estimated from the groups")


def without_observers(config: Config) -> Config:
    """The configuration without what only watches a run: the judge, held-out rewards, rules, trackers, callbacks."""
    data = config.model_dump(mode="json")
    data |= {"stop_when": [], "callbacks": [], "trackers": []}
    data["evaluate"] |= {"every": 0, "judge": None, "held_out": []}
    return Config.parse(data)
