"""The cost of a run in trajectories, reward queries, network evaluations and optimizer steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sdpo.assembly.checks import check_processes
from sdpo.assembly.update import first_step_is_shared, optimizer_steps, visits
from sdpo.config import Config
from sdpo.estimate.branched_cost import branched_cost
from sdpo.estimate.model_sizes import model_facts
from sdpo.estimate.preflight import ends_random
from sdpo.loop.gradient_cost import gradient_evaluations
from sdpo.method.algorithms import Algorithm, RewardGradient
from sdpo.method.seeds import generator

_DRAWS = 64  # draws of rewarded steps over which an update's cost is averaged


@dataclass(frozen=True)
class EpochCost:
    """The cost of one epoch, over all processes.

    Attributes:
        trajectories: trajectories that are sampled.
        queries: images that the rewards score, at most.
        forward: network evaluations without gradient.
        backward: network evaluations with gradient.
        optimizer_steps: optimizer steps.
    """

    trajectories: int
    queries: int
    forward: int
    backward: int
    optimizer_steps: int


def epoch_cost(config: Config) -> EpochCost:
    """Count what an epoch costs, without loading the model; the mean over the run where groups draw their step.

    Args:
        config: a configuration whose references have been checked.
    """
    trajectories, queries, forward, backward = map(round, _epoch_means(config))
    return EpochCost(trajectories, queries, forward, backward, optimizer_steps(config, ends_random(config)))


def _epoch_means(config: Config) -> tuple[float, float, float, float]:
    """Trajectories, queries, and evaluations without and with gradient of an epoch."""
    guidance, costs = guided_evaluations(config), list[tuple[float, float, float, float]]()
    if (policy := config.policy_algorithm()) is not None:
        cost = _policy_cost if config.sample.branch_at is None else _branched_policy_cost
        costs.append(cost(config, policy, guidance))
    if (gradient := config.gradient_algorithm()) is not None:
        costs.append(_gradient_cost(config, gradient, guidance))
    trajectories, queries, forward, backward = map(sum, zip(*costs, strict=True))
    return trajectories, queries, forward, backward


def guided_evaluations(config: Config) -> int:
    """The network evaluations of one latent at one step: two with classifier-free guidance, else one."""
    guided = config.sample.guidance_scale not in (None, 1)
    return 2 if guided and not model_facts(config.model.path).embeds_guidance else 1


def _policy_cost(config: Config, algorithm: Algorithm[Any], guidance: int) -> tuple[int, int, int, int]:
    """Trajectories, queries, and evaluations without and with gradient of an epoch's policy update."""
    sample, random_end = config.sample, ends_random(config)
    plan, steps = algorithm.reward_plan, visits(config, random_end)
    assert steps is not None, "the algorithm makes policy updates"
    trajectories = sample.prompts_per_epoch * algorithm.branches
    # At the first step, which all branches of a group have in common, one evaluation or query serves the group.
    shared = trajectories - sample.prompts_per_epoch if first_step_is_shared(config, random_end) else 0
    queries = plan.max_queries(sample.num_steps) * trajectories
    queries -= shared if plan.queries_first_step(sample.num_steps) else 0
    forward = (trajectories * sample.num_steps - shared) * guidance
    visited, eligible = steps.visited(sample.num_steps), steps.eligible(sample.num_steps)
    backward = (trajectories * visited - round(shared * visited / eligible)) * steps.inner_epochs * guidance
    # The reference model: once for both uses in a step, but apart where the loss joins all steps of a trajectory.
    uses = [config.train.policy_kl_weight > 0, algorithm.needs_reference]
    forward += backward * (sum(uses) if algorithm.takes_trajectories else any(uses))
    forward += backward if algorithm.takes_trajectories else 0  # all steps, before the first gradient
    return trajectories, queries, forward, backward


def _branched_policy_cost(
    config: Config, algorithm: Algorithm[Any], guidance: int
) -> tuple[float, float, float, float]:
    """The same for groups that branch at one step, as means over the epochs of the run."""
    sampling, groups = branched_cost(config, algorithm), config.sample.prompts_per_epoch
    backward = groups * config.train.inner_epochs  # the branches of a group have one latent at the step
    reference = backward if config.train.policy_kl_weight > 0 or algorithm.needs_reference else 0
    forward = sampling.evaluations / config.epochs + reference
    return groups * algorithm.branches, sampling.queries / config.epochs, forward * guidance, backward * guidance


def _gradient_cost(config: Config, algorithm: RewardGradient, guidance: int) -> tuple[int, int, int, int]:
    """Trajectories, queries, and evaluations without and with gradient of an epoch's update by reward gradients.

    Where updates draw their number of steps or the rewarded steps, these are means over many draws.
    """
    counts = algorithm.step_numbers(config.sample.num_steps)
    draws = [algorithm.terms(count, generator("cost", count, draw)) for count in counts for draw in range(_DRAWS)]
    costs = [gradient_evaluations(terms) for terms in draws]
    each = config.sample.prompts_per_epoch / len(draws)
    penalised = config.train.gradient_kl_weight > 0
    queries = sum(cost.rewarded for cost in costs) * each
    forward = sum(cost.forward + penalised * cost.rewarded for cost in costs) * each * guidance
    backward = sum(cost.backward for cost in costs) * each * guidance
    queries *= algorithm.reward_augment.copies
    return config.sample.prompts_per_epoch, round(queries), round(forward), round(backward)


def describe_cost(config: Config) -> str:
    """Say what a run will cost, in two lines that YAML takes for comments."""
    epoch, (_, _, forward, backward) = epoch_cost(config), _epoch_means(config)
    drawn = " (on average, as groups draw the step at which they branch)" * (config.sample.branch_at == "random")
    return (
        f"# an epoch{drawn}: {epoch.trajectories} trajectories, at most {epoch.queries} reward queries, "
        f"{epoch.forward} network evaluations without and {epoch.backward} with gradient, "
        f"{epoch.optimizer_steps} optimizer steps\n"
        f"# the run: {config.epochs} epochs, {config.epochs * epoch.trajectories} trajectories, "
        f"{round(config.epochs * (forward + backward))} network evaluations, "
        f"{config.epochs * epoch.optimizer_steps} optimizer steps"
    )


def describe_batches(config: Config, processes: int) -> str:
    """Say how the batches of an epoch are made up, in a line that YAML takes for a comment.

    Args:
        config: the configuration of a run.
        processes: the number of processes.

    Raises:
        UserError: if the batches do not divide over the processes, with numbers that do.
    """
    check_processes(config, processes)
    sample, train = config.sample, config.train
    share = train.batch_size // processes
    steps = optimizer_steps(config, ends_random(config))
    if train.micro_batch == "auto":
        calls = "in micro-batches that are found when training starts"
    else:
        micro = min(train.micro_batch, share)
        calls = f"in micro-batches of {micro} (gradients accumulated over {-(-share // micro)} calls)"
    return (
        f"# batches: {sample.prompts_per_epoch} groups an epoch = {sample.prompts_per_epoch // train.batch_size} × "
        f"{train.batch_size}; {train.batch_size} a step over {processes} process{'es' * (processes > 1)} = {share} "
        f"each, {calls}; {steps} optimizer steps an epoch"
    )
