"""Warns of statistics per prompt that a run reaches late or never."""

from __future__ import annotations

import math

from sdpo.config import Config
from sdpo.method.advantages import BufferedNormalizer


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
    first = math.ceil(least / each)
    if first <= max(1, config.epochs / 2):
        return ""
    fix = "Train longer, use fewer prompts or a smaller advantage.min_count"
    fix += ", or advantage.normalizer=pair" * (config.build_algorithm().branches > 1)
    if first > config.epochs:
        return (
            f"each of {prompts} prompts is drawn {each * config.epochs:.1f} times in the whole run, and "
            f"advantage.min_count is {least}: no prompt gets statistics of its own, and advantages are those of the "
            f"whole batch. {fix}"
        )
    return (
        f"prompts have statistics of their own from epoch {first} of {config.epochs} on (advantage.min_count is "
        f"{least}); until then advantages are those of the whole batch. {fix}"
    )
