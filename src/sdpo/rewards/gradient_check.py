"""The check that rewards have a gradient, before a run spends time on training by it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from sdpo.errors import RewardError, UserError
from sdpo.method import seeds
from sdpo.rewards.base import PlacedReward


def check_differentiable(rewards: Iterable[PlacedReward], algorithm: str) -> None:
    """Refuse rewards that do not declare a gradient.

    Args:
        rewards: the trained rewards.
        algorithm: the algorithm's name, for messages.

    Raises:
        UserError: naming the rewards without a gradient.
    """
    without = [reward for reward in rewards if not reward.differentiable]
    if not without:
        return
    names, verb = ", ".join(repr(reward.name) for reward in without), "has" if len(without) == 1 else "have"
    rounds = any(getattr(reward.reward, "resize", None) == "pil" for reward in without)
    declare = "a reward of your own that has a gradient must say differentiable = True"
    raise UserError(
        f"algorithm {algorithm} follows the gradient of the reward, and {names} {verb} none: use algorithm=sdpo, which "
        f"needs no gradient, or algorithm=hybrid where other rewards have one; "
        + ("reward_options with resize: float give it a gradient" if rounds else declare)
    )


def probe_gradient(
    reward: PlacedReward,
    prompts: list[str],
    metadata: list[dict[str, Any]],
    image_size: tuple[int, int],
    device: torch.device,
) -> None:
    """Call a reward on two images of noise, and refuse it where no gradient reaches them.

    Args:
        reward: a reward that says that it is differentiable.
        prompts: two prompts.
        metadata: the metadata of the two prompts.
        image_size: height and width in pixels.
        device: the device of the images.

    Raises:
        UserError: if the scores have no gradient at the images, or it is not finite.
        RewardError: if the reward fails.
    """
    noise = torch.rand(len(prompts), 3, *image_size, generator=seeds.generator("gradient check", reward.name))
    images = noise.to(device).requires_grad_()
    scores = reward.with_gradient(images, prompts, metadata)
    found = None
    if scores.requires_grad:
        (found,) = torch.autograd.grad(scores.sum(), images, allow_unused=True)
    where = f"reward {reward.name!r} says that it is differentiable, but"
    if found is None or not found.any():
        raise UserError(
            f"{where} its score of random images has no gradient at them: compute it by torch operations on the images "
            "that round or detach nothing, or set differentiable = False and use algorithm=sdpo"
        )
    if not found.isfinite().all():
        raise RewardError(f"{where} the gradient of its score at random images is not finite: avoid √0, log 0 and 0/0")
