"""Warns of statistics per prompt that a run reaches late or never."""

from __future__ import annotations

import math

from sdpo.config import Config
from sdpo.config.branching_checks import branching_of
from sdpo.method.advantages import BufferedNormalizer, StepwiseNormalizer


def describe_statistics(config: Config, prompts: int) -> str:
    """Say when prompts get statistics of their own; empty where that is in the first half of the run.

    Until then advantages are normalised by the mean and standard deviation of the whole batch, which mixes the levels
    of different prompts.

    Args:
        config: the configuration of a run.
        prompts: the number of training prompts.
    """
    if config.policy_algorithm() is None or not isinstance(config.build_normalizer(), BufferedNormalizer):
        return ""
    least = config.advantage.min_count
    each = config.sample.prompts_per_epoch * config.build_algorithm().branches / prompts  # entries an epoch
    each *= _share_of_a_step(config)
    first = math.ceil(least / each)
    if first <= max(1, config.epochs / 2):
        return ""
    fix = "Train longer, use fewer prompts or a smaller advantage.min_count"
    fix += ", or advantage.normalizer=pair" * (config.build_algorithm().branches > 1)
    at_step = " at each step where branches part" * (_share_of_a_step(config) < 1)
    if first > config.epochs:
        return (
            f"each of {prompts} prompts is drawn {each * config.epochs:.1f} times{at_step} in the whole run, and "
            f"advantage.min_count is {least}: no prompt gets statistics of its own, and advantages are those of the "
            f"whole batch. {fix}"
        )
    return (
        f"prompts have statistics of their own from epoch {first} of {config.epochs} on (advantage.min_count is "
        f"{least}); until then advantages are those of the whole batch. {fix}"
    )


def _share_of_a_step(config: Config) -> float:
    """The share of the groups of an epoch that enter the same statistics: those that branch at one of several steps."""
    branching = branching_of(config.sample)
    by_step = branching is not None and isinstance(config.build_normalizer(), StepwiseNormalizer)
    return 1 / len(branching.steps) if branching is not None and by_step else 1.0
