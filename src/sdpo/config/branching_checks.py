"""Checks of the settings of branching at one step: each combination without a meaning, with its reason and the fix."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from sdpo.config.algorithm_checks import as_written
from sdpo.config.sections import SampleConfig, TrainConfig
from sdpo.method.advantages import Normalizer
from sdpo.method.algorithms import Algorithm
from sdpo.method.branching import Branching
from sdpo.method.credit import StepCredit


def branching_of(sample: SampleConfig) -> Branching | None:
    """The branching that the section `sample` asks for; None where all steps are trained.

    Raises:
        ValueError: if the step or the weights are not legal for the number of steps.
    """
    if sample.branch_at is None:
        return None
    if sample.branch_at != "random":
        return Branching.at(sample.branch_at, sample.num_steps, sample.after_branch, sample.lookahead)
    weights = sample.branch_weights or [1.0] * (sample.num_steps - 1)
    return Branching(tuple(weights), sample.after_branch, sample.lookahead)


def check_branching(
    sample: SampleConfig, train: TrainConfig, algorithm: Algorithm[Any], name: str, normalizer: Normalizer
) -> None:
    """Refuse settings that contradict branching at one step, or that mean nothing with or without it.

    Args:
        sample: the section `sample`.
        train: the section `train`.
        algorithm: the algorithm of policy updates.
        name: the algorithm's name.
        normalizer: the advantage normaliser.

    Raises:
        ValueError: naming the setting, the reason and the fix.
    """
    if sample.branch_at is None:
        _check_unset(sample)
        return
    problems = itertools.chain(
        _of_steps(sample),
        _of_sampling(sample),
        _of_algorithm(sample, algorithm, name),
        _of_update(train),
        _of_normalizer(normalizer),
    )
    if (first := next(problems, None)) is not None:
        raise ValueError(first)


def _check_unset(sample: SampleConfig) -> None:
    """Refuse settings of branches that part at one step."""
    for key in ("branch_weights", "after_branch", "lookahead"):
        value, neutral = getattr(sample, key), SampleConfig.model_fields[key].default
        if value != neutral:
            raise ValueError(
                f"sample.{key} is {value}, but the branches part at no single step (sample.branch_at is null): set "
                "sample.branch_at, or leave it out"
            )


def _of_steps(sample: SampleConfig) -> Iterator[str]:
    """Problems of the steps at which branches part, and of how far they are followed."""
    at, weights, last = sample.branch_at, sample.branch_weights, sample.num_steps - 1
    if last == 0:
        yield (
            f"sample.branch_at is {at}, but sample.num_steps is 1, and no image follows its only step: use "
            "sample.num_steps=2 or more"
        )
    if isinstance(at, int) and at >= last:
        yield (
            f"sample.branch_at is {at}, but no image follows the last of {last + 1} steps, so that what the branches "
            f"do there is not rewarded: use 0 to {last - 1}"
        )
    if at != "random" and weights is not None:
        yield (
            f"sample.branch_weights is set, but sample.branch_at is {at}: use sample.branch_at=random, or leave it out"
        )
    if weights is not None and len(weights) != last:
        yield (
            f"sample.branch_weights has {len(weights)} weights, but branches can part at the first {last} of "
            f"{last + 1} steps: give {last}"
        )
    if weights is not None and not any(weights):
        yield "sample.branch_weights are all 0: give at least one step a weight above 0"
    earliest = at if isinstance(at, int) else next((i for i, w in enumerate(weights or [1.0]) if w > 0), 0)
    if sample.lookahead is not None and sample.lookahead > last - earliest:
        yield (
            f"sample.lookahead is {sample.lookahead}, but at most {last - earliest} steps follow the one at which "
            "branches part: use fewer, or null to go on to the last step"
        )
    if sample.lookahead == 1 and sample.after_branch != "common":
        yield (
            f"sample.after_branch is {sample.after_branch}, but with sample.lookahead=1 nothing is drawn after the "
            "step at which branches part: leave it out"
        )


def _of_sampling(sample: SampleConfig) -> Iterator[str]:
    """Problems of sampling, by which the branches of a group would have no latent in common or no noise to part by."""
    if not sample.shared_noise:
        yield (
            "sample.shared_noise is false, but branches that part at one step (sample.branch_at) have the latent "
            "before it in common: set it to true"
        )
    if sample.share_first_step != "auto":
        yield (
            f"sample.share_first_step is {sample.share_first_step}, but with sample.branch_at all steps up to the one "
            "at which branches part are evaluated once a group: set it to auto"
        )
    if sample.eta == 0:
        yield (
            "sample.eta is 0, but branches part by the noise of one step (sample.branch_at), which is 0 then: set "
            "sample.eta to 1.0 or above 0"
        )


def _of_algorithm(sample: SampleConfig, algorithm: Algorithm[Any], name: str) -> Iterator[str]:
    """Problems of the algorithm, its credit rule and its reward plan."""
    credit = algorithm.credit
    if algorithm.takes_trajectories:
        yield (
            f"sample.branch_at is {sample.branch_at}, but the loss of {name} joins all steps of a trajectory, of which "
            "branching trains one: use an algorithm of single steps, such as sdpo, grpo or ddpo"
        )
    if algorithm.branches < 2:
        yield (
            f"sample.branch_at is {sample.branch_at}, but algorithm.branches is 1, and one trajectory does not branch: "
            "use 2 or more"
        )
    if isinstance(credit, StepCredit) and algorithm.reward_plan.step_rewards != "zero":
        yield (
            "algorithm.credit=step counts the reward of the image at which branches part (sample.branch_at), which is "
            "the same in all of them: use algorithm.credit=future, or gain"
        )
    if credit.min_groups > 1:
        yield (
            "algorithm.credit compares the groups of an epoch (as the fitted baseline of gain does), but with "
            "sample.branch_at the branches of a group have the same image at their step, so that nothing can be "
            "fitted to their differences: use algorithm.credit.baseline=none, or another credit rule"
        )


def _of_update(train: TrainConfig) -> Iterator[str]:
    """Problems of the update: settings that choose among the steps of a trajectory."""
    neutral = {"timestep_fraction": 1.0, "first_steps": None, "step_shuffle": True, "accumulate_steps": None}
    for key, value in neutral.items():
        if (found := getattr(train, key)) != value:
            yield (
                f"train.{key} is {found}, which chooses among the steps of a trajectory, but with sample.branch_at "
                f"each group trains one step: set it to {as_written(value)}"
            )


def _of_normalizer(normalizer: Normalizer) -> Iterator[str]:
    """Problems of the normaliser, whose statistics would mix the returns of different steps."""
    if not normalizer.takes_single_steps:
        yield (
            f"advantage.normalizer: {type(normalizer).__name__} keeps statistics, but has no update_at(prompts, "
            "returns, steps), by which groups that branch at one step (sample.branch_at) are normalised: define it, or "
            "use another normaliser"
        )
