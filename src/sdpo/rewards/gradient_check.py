"""The check that rewards have a gradient, before a run spends time on training by it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from sdpo.errors import RewardError, UserError
from sdpo.rewards.descriptions import DESCRIPTIONS
from sdpo.rewards.registry import declares_gradient

if TYPE_CHECKING:
    import torch

    from sdpo.rewards.base import PlacedReward


def check_names_differentiable(names: Iterable[str], algorithm: str) -> None:
    """Refuse rewards that have no gradient, as far as their names tell, before anything is loaded.

    Args:
        names: the names of the trained rewards.
        algorithm: the algorithm's name, for messages.

    Raises:
        UserError: naming the rewards without a gradient.
    """
    known = {description.name: description.has_gradient for description in DESCRIPTIONS}
    without = [name for name in names if (known[name] if name in known else declares_gradient(name)) is False]
    _refuse(without, algorithm)


def check_names_of_both_kinds(names: Sequence[str]) -> None:
    """Refuse a hybrid whose rewards, all of them the package's, are of one kind, before anything is loaded.

    Args:
        names: the names of the trained rewards; where one is the user's own, nothing is known yet.

    Raises:
        UserError: as `check_both_kinds`.
    """
    gradient = {description.name: description.has_gradient for description in DESCRIPTIONS}
    if all(name in gradient for name in names):
        check_both_kinds([name for name in names if not gradient[name]], [name for name in names if gradient[name]])


def check_both_kinds(without: Collection[str], with_gradient: Collection[str]) -> None:
    """Refuse a hybrid whose rewards are of one kind.

    Args:
        without: the names of the rewards without a gradient.
        with_gradient: the names of those with one.

    Raises:
        UserError: naming the rewards and the algorithm that fits them.
    """
    if without and with_gradient:
        return
    have, use = ("a", "srg") if with_gradient else ("no", "sdpo")
    raise UserError(
        f"algorithm=hybrid trains by two kinds of rewards, but all of {', '.join([*without, *with_gradient])} have "
        f"{have} gradient: use algorithm={use}"
    )


def check_differentiable(rewards: Iterable[PlacedReward], algorithm: str) -> None:
    """Refuse rewards that do not declare a gradient.

    Args:
        rewards: the trained rewards.
        algorithm: the algorithm's name, for messages.

    Raises:
        UserError: naming the rewards without a gradient.
    """
    without = [reward for reward in rewards if not reward.differentiable]
    rounds = any(getattr(reward.reward, "resize", None) == "pil" for reward in without)
    _refuse([reward.name for reward in without], algorithm, rounds)


def _refuse(names: Sequence[str], algorithm: str, rounds: bool = False) -> None:
    """Refuse rewards by name, if there are any.

    Args:
        names: the names of the rewards without a gradient.
        algorithm: the algorithm's name.
        rounds: whether one of them would have a gradient if it did not round.
    """
    if not names:
        return
    listed, verb = ", ".join(map(repr, names)), "has" if len(names) == 1 else "have"
    declare = "a reward of your own that has a gradient must say differentiable = True"
    raise UserError(
        f"algorithm {algorithm} follows the gradient of the reward, and {listed} {verb} none: use algorithm=sdpo, "
        "which needs no gradient, or algorithm=hybrid where other rewards have one; "
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

    Some rewards are flat in places, as beyond a threshold: a gradient at dark or at bright noise is enough.

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
    import torch

    from sdpo.method import seeds

    noise = torch.rand(len(prompts), 3, *image_size, generator=seeds.generator("gradient check", reward.name))
    found = None
    for probe in (noise, 0.1 * noise, 0.9 + 0.1 * noise):
        images = probe.to(device).requires_grad_()
        with reward.resident():  # an offloaded model must not leave its device between the two passes
            scores = reward.with_gradient(images, prompts, metadata)
            if scores.requires_grad:
                (found,) = torch.autograd.grad(scores.sum(), images, allow_unused=True)
        if found is not None and found.any():
            break
    where = f"reward {reward.name!r} says that it is differentiable, but"
    if found is None or not found.any():
        raise UserError(
            f"{where} its score of random images has no gradient at them: compute it by torch operations on the images "
            "that round or detach nothing, or set differentiable = False and use algorithm=sdpo"
        )
    if not found.isfinite().all():
        raise RewardError(f"{where} the gradient of its score at random images is not finite: avoid √0, log 0 and 0/0")
