"""The update of a run: its visits, optimizer, learning-rate schedule, and average of the weights."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from sdpo.config import Config
from sdpo.config.sections import TrainConfig
from sdpo.distributed.launch import Sharding
from sdpo.distributed.processes import Processes
from sdpo.distributed.shard import make_optimization
from sdpo.errors import UserError
from sdpo.loop.optimizer import Optimization, alone, warmup_decay
from sdpo.loop.policy import Policy
from sdpo.loop.policy_update import PolicyUpdate, UpdateSettings
from sdpo.loop.shared_first_step import shares_first_step
from sdpo.loop.step_batch import KLForm
from sdpo.loop.visits import Visits
from sdpo.method.algorithms import Algorithm


def visits(config: Config, ends_random: bool) -> Visits | None:
    """The steps that the policy update of a run visits; None where it makes none.

    Args:
        config: the configuration of a run.
        ends_random: whether the last step of the schedule is stochastic; a deterministic one has no density.

    Groups that branch at one step are visited there, which is their one recorded step.
    """
    train, algorithm = config.train, config.policy_algorithm()
    if algorithm is None:
        return None
    if config.sample.branch_at is not None:
        return Visits(seed=config.seed, inner_epochs=train.inner_epochs)
    return Visits(
        seed=config.seed,
        inner_epochs=train.inner_epochs,
        timestep_fraction=train.timestep_fraction,
        first_steps=train.first_steps,
        last_step=ends_random and algorithm.credit.trains_last_step,
        shuffle=train.step_shuffle,
        whole_trajectories=algorithm.takes_trajectories,
        accumulated=_accumulated(train.accumulate_steps, algorithm),
    )


def _accumulated(setting: int | Literal["all"] | None, algorithm: Algorithm[Any]) -> int | None:
    """The number of visited steps that an optimizer step accumulates; None means all of a pass."""
    chosen = algorithm.accumulates if setting is None else setting
    return None if chosen == "all" else chosen


def first_step_is_shared(config: Config, ends_random: bool) -> bool:
    """Whether the branches of a group share the network evaluation of the first step of a run.

    Args:
        config: the configuration of a run.
        ends_random: whether the last step of the schedule is stochastic.
    """
    sample, visited = config.sample, visits(config, ends_random)
    branches_at_one = sample.branch_at is not None  # such groups share all steps up to that one
    return (
        visited is not None
        and not branches_at_one
        and shares_first_step(
            sample.share_first_step,
            shared_noise=sample.shared_noise,
            visits=visited,
            num_steps=sample.num_steps,
        )
    )


def recorded_steps(config: Config) -> int:
    """The number of steps of a trajectory that are recorded for the update: all, or the one at which branches part."""
    return config.sample.num_steps if config.sample.branch_at is None else 1


def optimizer_steps(config: Config, ends_random: bool) -> int:
    """The number of optimizer steps an epoch.

    Args:
        config: the configuration of a run.
        ends_random: whether the last step of the schedule is stochastic.
    """
    batches = config.sample.prompts_per_epoch // config.train.batch_size
    visited, gradient = visits(config, ends_random), config.gradient_algorithm()
    steps = visited.optimizer_steps(batches, recorded_steps(config)) if visited is not None else 0
    return steps + (batches if gradient is not None else 0)


def make_optimizer(parameters: Iterable[nn.Parameter], train: TrainConfig) -> torch.optim.Optimizer:
    """Make AdamW, or its 8-bit form.

    Raises:
        UserError: if the 8-bit form is not installed.
    """
    settings: dict[str, Any] = dict(
        lr=train.learning_rate, betas=tuple(train.betas), weight_decay=train.weight_decay, eps=train.epsilon
    )
    if train.optimizer == "adamw8bit":
        try:
            import bitsandbytes
        except ImportError as error:
            raise UserError("train.optimizer=adamw8bit needs bitsandbytes: pip install 'sdpo[bitsandbytes]'") from error
        return bitsandbytes.optim.AdamW8bit(parameters, **settings)  # type: ignore[no-any-return]
    return torch.optim.AdamW(parameters, fused=True, **settings)


def make_optimizer_of_run(
    config: Config, policy: Policy, ends_random: bool, processes: Processes, sharding: Sharding | None
) -> Optimization:
    """Make the optimizer with its learning-rate schedule and average of the weights.

    Args:
        config: the configuration of a run.
        policy: the policy that is trained.
        ends_random: whether the last step of the schedule is stochastic.
        processes: the processes that share the batches.
        sharding: the sharding that the launch asks for; None shards nothing.

    Raises:
        UserError: if the package of the 8-bit optimizer is not installed.
    """
    train = config.train
    steps = config.epochs * optimizer_steps(config, ends_random)

    def make(tensors: list[nn.Parameter]) -> tuple[torch.optim.Optimizer, LRScheduler]:
        optimizer = make_optimizer(tensors, train)
        return optimizer, LambdaLR(optimizer, warmup_decay(train.lr_schedule, train.warmup_steps, steps))

    return make_optimization(
        sharding,
        policy.backbone,
        processes,
        policy.backbone.trainable_parameters(),
        make,
        max_grad_norm=train.max_grad_norm,
        ema_decay=train.ema_decay,
        ema_warmup=train.ema_warmup,
        all_reduce=processes.mean if processes.count > 1 else alone,
        scaled=policy.dtype == torch.float16 and policy.backbone.device.type == "cuda",
    )


def make_policy_update(
    config: Config, policy: Policy, ends_random: bool, processes: Processes, optimization: Optimization
) -> PolicyUpdate | None:
    """Make the policy update of a run; None where its algorithm makes none.

    Args:
        config: the configuration of a run.
        policy: the policy that is trained.
        ends_random: whether the last step of the schedule is stochastic.
        processes: the processes that share the batches.
        optimization: the optimizer of the run.
    """
    train, algorithm, visited = config.train, config.policy_algorithm(), visits(config, ends_random)
    if algorithm is None or visited is None:
        return None
    form: KLForm = "flow_grpo" if train.kl_form == "flow_grpo" else "transition"
    settings = UpdateSettings(
        batch_size=train.batch_size // processes.count,
        visits=visited,
        kl_weight=train.policy_kl_weight,
        kl_form=form,
        skip_nonfinite=train.on_nonfinite == "skip",
    )
    return PolicyUpdate(policy, algorithm, settings, optimization)
