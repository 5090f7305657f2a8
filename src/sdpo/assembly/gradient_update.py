"""The update of a run by the gradient of its rewards."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial

import torch

from sdpo.assembly.model_parts import ModelParts
from sdpo.config import Config
from sdpo.loop.clock import Clock
from sdpo.loop.collect import gather_scores
from sdpo.loop.gradient_records import GradientSettings
from sdpo.loop.gradient_update import GradientUpdate
from sdpo.loop.optimizer import Optimization
from sdpo.loop.reward_head import RewardHead
from sdpo.loop.reward_mix import RewardMix
from sdpo.method.algorithms import Hybrid
from sdpo.prompts import Prompt
from sdpo.rewards.base import PlacedReward
from sdpo.rewards.gradient_check import check_both_kinds, check_differentiable, probe_gradient


def split_rewards(
    config: Config, rewards: Mapping[str, PlacedReward]
) -> tuple[dict[str, PlacedReward], dict[str, PlacedReward]]:
    """The trained rewards of policy updates, and those whose gradient is followed.

    Args:
        config: the configuration of a run.
        rewards: the loaded rewards by name.

    Raises:
        UserError: if an algorithm of reward gradients is given a reward without one, or a hybrid has rewards of one
            kind only.
    """
    trained = {name: rewards[name] for name in config.rewards}
    algorithm = config.build_algorithm()
    if isinstance(algorithm, Hybrid):
        without = {name: reward for name, reward in trained.items() if not reward.differentiable}
        with_gradient = {name: reward for name, reward in trained.items() if reward.differentiable}
        check_both_kinds(without, with_gradient)
        return without, with_gradient
    if config.gradient_algorithm() is None:
        return trained, {}
    check_differentiable(trained.values(), config.algorithm["name"])
    return {}, trained


def gradient_decode_batch(config: Config, image_size: tuple[int, int]) -> int:
    """Resolve `scoring.decode_batch` where images are decoded with a gradient.

    `auto` is one image of 512 × 512, and as many smaller ones as have its number of pixels, up to 32 and to the
    trajectories of an optimizer step.

    Args:
        config: the configuration of a run.
        image_size: height and width in pixels.
    """
    setting = config.scoring.decode_batch
    if setting != "auto":
        return setting
    return max(1, min(32, 2**18 // math.prod(image_size), config.train.batch_size))


def make_gradient_update(
    model: ModelParts, rewards: Mapping[str, PlacedReward], optimization: Optimization, clock: Clock
) -> GradientUpdate | None:
    """Make the update by reward gradients; None where the run's algorithm follows none.

    Args:
        model: the parts that draw images.
        rewards: the rewards whose gradient is followed, by name; empty where the parts cannot score.
        optimization: the optimizer of the run.
        clock: counts the seconds of the phases.

    Raises:
        UserError: if the model has no schedule of one of the numbers of steps.
    """
    config, backbone = model.config, model.backbone
    algorithm, whole = config.gradient_algorithm(), config.build_algorithm()
    if algorithm is None:
        return None
    train = config.train
    settings = GradientSettings(
        seed=config.seed,
        batch_size=train.batch_size // model.processes.count,
        kl_weight=train.gradient_kl_weight,
        loss_weight=whole.gradient_weight if isinstance(whole, Hybrid) else 1.0,
        skip_nonfinite=train.on_nonfinite == "skip",
    )
    head = RewardHead(
        backbone,
        RewardMix(rewards, {name: config.rewards[name] for name in rewards}),
        algorithm.reward_augment,
        algorithm.objective,
        decode_batch=gradient_decode_batch(config, backbone.image_size),
        clock=clock,
    )
    counts = algorithm.step_numbers(config.sample.num_steps)
    schedules = {count: backbone.denoiser(count, config.sample.eta) for count in counts}
    gather = partial(gather_scores, processes=model.processes)
    return GradientUpdate(model.policy, algorithm, settings, optimization, head, schedules, gather)


def probe_rewards(
    rewards: Mapping[str, PlacedReward], prompts: Sequence[Prompt], image_size: tuple[int, int], device: torch.device
) -> None:
    """Try the gradient of each reward on two images of noise, before anything takes time.

    Args:
        rewards: the rewards whose gradient is followed, by name.
        prompts: the training prompts.
        image_size: height and width in pixels.
        device: the device of the images.

    Raises:
        UserError: if a reward has no gradient at the images, or fails.
    """
    chosen = [prompts[i % len(prompts)] for i in range(2)]
    texts, metadata = [prompt.text for prompt in chosen], [prompt.metadata for prompt in chosen]
    for reward in rewards.values():
        probe_gradient(reward, texts, metadata, image_size, device)
