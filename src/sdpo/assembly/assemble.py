"""Assembles the parts of a run from its configuration: the one place where they are made and joined."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from sdpo.assembly.branching import make_branched_rollout, steps_after_branching
from sdpo.assembly.callbacks import Callback, Callbacks
from sdpo.assembly.checks import check_density
from sdpo.assembly.gradient_update import make_gradient_update, probe_rewards, split_rewards
from sdpo.assembly.micro_batches import choose_micro_batches, decode_batch
from sdpo.assembly.model import (
    compile_network,
    compute_dtype,
    encode_prompts,
    load_model,
    make_trainable,
    matrix_precision,
    warn_of_truncated,
    with_own_dtype,
    with_own_guidance,
)
from sdpo.assembly.model_parts import ModelParts
from sdpo.assembly.parts import Parts
from sdpo.assembly.prompt_statistics import describe_statistics
from sdpo.assembly.quiet_steps import describe_quiet_steps
from sdpo.assembly.rewards import load_rewards
from sdpo.assembly.update import first_step_is_shared, make_optimizer_of_run, make_policy_update
from sdpo.assembly.user_objects import Given
from sdpo.backbones import Backbone, PipelineBackbone
from sdpo.config import Config
from sdpo.config.named import build_named
from sdpo.distributed.launch import Sharding
from sdpo.distributed.processes import Processes
from sdpo.distributed.shard import shard
from sdpo.evaluation.evaluator import Evaluator
from sdpo.evaluation.prompt_lists import PromptLists, prompt_lists
from sdpo.evaluation.sampler import Sampler
from sdpo.loop.batches import Batches
from sdpo.loop.clock import Clock
from sdpo.loop.optimizer import Optimization
from sdpo.loop.policy import Policy
from sdpo.loop.reward_mix import RewardMix
from sdpo.method.denoisers import Denoiser
from sdpo.prompts import Prompt
from sdpo.rewards.base import PlacedReward
from sdpo.system.log import logger


def build_model(
    config: Config, processes: Processes, prompts: Iterable[str] = (), backbone: PipelineBackbone | None = None
) -> ModelParts:
    """Assemble the parts that draw images.

    Args:
        config: the configuration of a run, or a default one around a model.
        processes: the processes of this launch.
        prompts: the prompts that will be drawn; each is encoded once.
        backbone: a model that is loaded already, such as a tuned model; None loads `config.model`.

    Raises:
        UserError: if the model cannot be loaded.
    """
    device = processes.device
    config = with_own_dtype(config, device)
    backbone = load_model(config, device) if backbone is None else backbone
    config = with_own_guidance(config, backbone)
    policy = Policy(backbone, backbone.guidance_scale(config.sample.guidance_scale), compute_dtype(config, device))
    embeddings = encode_prompts(config, backbone, prompts)
    return ModelParts(config, processes, backbone, policy, embeddings, decode_batch(config, backbone.image_size))


def build(
    config: Config,
    processes: Processes,
    *,
    given: Given | None = None,
    sharding: Sharding | None = None,
    prompts: Sequence[Prompt] | None = None,
    with_rewards: bool = True,
    clock: Clock | None = None,
) -> Parts:
    """Assemble the parts of a training run.

    Args:
        config: the configuration of the run, in which `given` is described already.
        processes: the processes of this launch.
        given: the user's own pipeline and reward; None means there are none.
        sharding: the sharding that the launch asks for, checked; None shards nothing.
        prompts: the training prompts, without unseen ones; None loads both from the configuration.
        with_rewards: whether the rewards are loaded; without them the parts can sample and update, but not score.
        clock: counts the seconds of the phases; None counts them without waiting for the device.

    Raises:
        UserError: if a part cannot be made.
    """
    given = given or Given()
    callbacks = Callbacks([build_named(value, {}, Callback, "callbacks") for value in config.callbacks])
    lists = prompt_lists(config, prompts)
    warnings = [lists.describe_cut(config.evaluate.max_prompts), describe_statistics(config, len(lists.train))]
    config = with_own_dtype(config, processes.device)
    backbone = _trainable_backbone(config, processes, given, sharding)
    config = with_own_guidance(config, backbone)
    denoiser = _training_schedule(config, backbone)
    following = steps_after_branching(config, backbone, denoiser, sharding)
    if processes.is_main:
        _warn([*warnings, describe_quiet_steps(config, denoiser)])
    names = dict.fromkeys([*config.rewards, *config.evaluate.observers]) if with_rewards else {}
    rewards = load_rewards(config, names, processes.device, given.rewards)
    plain, climbed = split_rewards(config, rewards) if with_rewards else ({}, {})
    warn_of_truncated(backbone, lists.texts)
    probe_rewards(climbed, lists.train, backbone.image_size, processes.device)
    model = build_model(config, processes, lists.texts, backbone)
    clock = clock or Clock()
    precision = partial(matrix_precision, config.model.tf32)
    with precision():
        compile_network(config, backbone, model.policy, denoiser, model.embeddings)
        micro_batches = choose_micro_batches(config, model.policy, denoiser, model.embeddings, processes)
    optimization = make_optimizer_of_run(config, model.policy, denoiser.ends_random, processes, sharding)
    update = make_policy_update(config, model.policy, denoiser.ends_random, processes, optimization)
    gradient = make_gradient_update(model, climbed, optimization, clock)
    groups, batch_size = config.sample.prompts_per_epoch, config.train.batch_size
    return Parts(
        **vars(model),
        prompts=lists.train,
        denoiser=denoiser,
        algorithm=config.build_algorithm(),
        batches=Batches(lists.train, groups, batch_size, config.seed, processes.rank, processes.count),
        mix=RewardMix(plain, {name: config.rewards[name] for name in plain}),
        normalizer=config.build_normalizer(),
        optimization=optimization,
        update=update,
        gradient=gradient,
        evaluator=_make_evaluator(config, lists, rewards, optimization),
        micro_batches=micro_batches,
        share_first_step=first_step_is_shared(config, denoiser.ends_random),
        branched=make_branched_rollout(config, model.policy, model.embeddings, denoiser, following),
        callbacks=callbacks,
        clock=clock,
        precision=precision,
    )


def _warn(warnings: Iterable[str | None]) -> None:
    """Log the warnings that there are."""
    for warning in filter(None, warnings):
        logger.warning("%s", warning)


def _make_evaluator(
    config: Config, lists: PromptLists, rewards: Mapping[str, PlacedReward], optimization: Optimization
) -> Evaluator:
    """Make the evaluator of a run."""
    return Evaluator(
        settings=config.evaluate,
        epochs=config.epochs,
        prompts=lists.evaluated,
        unseen=lists.unseen,
        rewards=rewards,
        averaged=_averaged_weights(optimization),
        keeps_average=config.train.ema_decay is not None,
        starts_from_lora=config.lora is not None and config.lora.path is not None,
    )


def _training_schedule(config: Config, backbone: Backbone) -> Denoiser:
    """Make the schedule that is trained on, and try all others of the run, before anything takes time.

    Raises:
        UserError: if the model has no such schedule, or the schedule has no step to learn from.
    """
    sample = config.sample
    denoiser = backbone.denoiser(sample.num_steps, sample.eta)
    if (gradient := config.gradient_algorithm()) is not None:
        for count in gradient.step_numbers(sample.num_steps):
            backbone.denoiser(count, sample.eta)
    for count in config.evaluate.steps:
        backbone.denoiser(count, sample.eta)
        Sampler(config.evaluate.eta).denoiser(backbone, count)
    check_density(config, bool(denoiser.stochastic.any()))
    return denoiser


def _trainable_backbone(
    config: Config, processes: Processes, given: Given, sharding: Sharding | None
) -> PipelineBackbone:
    """Load the model, make a LoRA or all of its weights trainable, and shard it where the launch asks for that."""
    device = processes.device
    splits_weights = sharding is not None and sharding.shards_weights
    on_cpu = splits_weights or config.model.quantize is not None  # the full network need not fit on the device
    place = torch.device("cpu") if on_cpu else device
    backbone = load_model(config, device, given.pipeline, place)
    make_trainable(backbone, config, device, splits_weights)
    shard(backbone, sharding, device, compute_dtype(config, device), processes.count)
    return backbone


def _averaged_weights(optimization: Optimization) -> Callable[[], contextlib.AbstractContextManager[Any]]:
    """A function whose context gives the network the averaged weights, or does nothing where no average is kept."""
    return optimization.ema.applied if optimization.ema is not None else contextlib.nullcontext
