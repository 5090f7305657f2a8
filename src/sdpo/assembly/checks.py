"""Checks of a configuration that need no model: names, prompts, stopping rules, batches over processes, densities."""

from __future__ import annotations

from collections.abc import Iterable

from sdpo.config import Config
from sdpo.errors import UserError
from sdpo.evaluation.stopping import check_rules
from sdpo.prompts import load_prompts
from sdpo.rewards.gradient_check import check_names_differentiable, check_names_of_both_kinds
from sdpo.rewards.registry import check_reward_name


def check_names(config: Config, given: Iterable[str] = ()) -> None:
    """Refuse rewards and prompts that do not exist, rewards without a gradient where one is followed, and idle rules.

    Args:
        config: the configuration of a run.
        given: the names of rewards that the user gave as callables, which are not looked up.

    Raises:
        UserError: naming what does not exist or has no gradient.
    """
    given = set(given)
    for name in dict.fromkeys([*config.rewards, *config.evaluate.observers]):
        if name not in given:
            check_reward_name(name)
    known = [name for name in config.rewards if name not in given]
    if config.policy_algorithm() is None:
        check_names_differentiable(known, config.algorithm["name"])
    elif config.gradient_algorithm() is not None and len(known) == len(config.rewards):
        check_names_of_both_kinds(known)
    check_rules(config)
    for source in (config.prompts.train, config.prompts.unseen, config.evaluate.prompts):
        if source is not None:
            load_prompts(source)


def check_processes(config: Config, processes: int) -> None:
    """Refuse batches that do not divide over the processes.

    Args:
        config: the configuration of a run.
        processes: the number of processes.

    Raises:
        UserError: with batch sizes that divide.
    """
    batch = config.train.batch_size
    if batch % processes:
        legal = max(1, round(batch / processes)) * processes
        prompts = max(1, round(config.sample.prompts_per_epoch / legal)) * legal
        raise UserError(
            f"train.batch_size ({batch}) must be a multiple of the {processes} processes: "
            f"use train.batch_size={legal} with sample.prompts_per_epoch={prompts}"
        )


def check_density(config: Config, has_density: bool) -> None:
    """Refuse a schedule without a stochastic step for an algorithm that learns from log-probabilities.

    Args:
        config: the configuration of a run.
        has_density: whether any step of the schedule is stochastic.

    Raises:
        UserError: if the algorithm has nothing to learn from.
    """
    algorithm = config.policy_algorithm()
    if algorithm is not None and algorithm.needs_log_prob and not has_density:
        raise UserError(
            f"sample.num_steps is {config.sample.num_steps}, whose only step is deterministic on this model's schedule "
            "and has no log-probability to learn from: use sample.num_steps=2 or more"
        )
