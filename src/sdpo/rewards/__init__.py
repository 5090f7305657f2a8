"""Reward functions and models, by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sdpo.errors import UserError
from sdpo.rewards.base import Reward, checked_scores, resolve

REWARDS: dict[str, str] = {
    "emoji_score": "sdpo.rewards.emoji:EmojiScore",
    "emoji_judge": "sdpo.rewards.emoji:EmojiJudge",
    "jpeg_compressibility": "sdpo.rewards.jpeg:JpegCompressibility",
    "jpeg_incompressibility": "sdpo.rewards.jpeg:JpegIncompressibility",
    "colorfulness": "sdpo.rewards.colorfulness:Colorfulness",
}

# Named by the published presets; their models are not part of this version.
ANNOUNCED = ("aesthetic", "imagereward", "hpsv2", "pickscore")


@dataclass(frozen=True)
class Description:
    """One line of `sdpo rewards`."""

    name: str
    range: str
    text: str


DESCRIPTIONS = (
    Description("emoji_score", "-1 … 1", "cosine of image and prompt, for the embedded model (comes with the package)"),
    Description("emoji_judge", "0 or 1", "is the right animal recognised? for evaluation, not for training"),
    Description("jpeg_compressibility", "< 0", "minus the size as JPEG of quality 95, in kB (Black et al. 2023)"),
    Description("jpeg_incompressibility", "> 0", "the size as JPEG of quality 95, in kB (Black et al. 2023)"),
    Description("colorfulness", "0 … about 110", "M of Hasler & Süsstrunk 2003, on the 0 … 255 scale"),
)


def check_reward_name(name: str) -> None:
    """Fail early on a name that no reward has; loads no weights.

    Raises:
        UserError: see `resolve`.
    """
    if name not in ANNOUNCED:
        resolve(name, REWARDS)


def load_reward(name: str, device: str = "cpu") -> Reward:
    """Instantiate a reward by its name or by the user's own dotted path (a class without arguments, or a function).

    Raises:
        UserError: if there is none of that name, or it cannot be built.
    """
    if name in ANNOUNCED:
        raise UserError(
            f"rewards: {name!r} is announced for a later version and cannot be loaded yet. "
            f"Available: {', '.join(REWARDS)}; or your own callable, my_module:my_reward."
        )
    found = resolve(name, REWARDS)
    if not isinstance(found, type):
        return found
    try:
        reward: Any = found(device=device) if name in REWARDS else found()
    except TypeError as error:
        raise UserError(f"rewards: {name!r} is a class that cannot be built without arguments: {error}") from error
    if not callable(reward):
        raise UserError(f"rewards: instances of {name!r} cannot be called with (images, prompts, metadata)")
    return reward  # type: ignore[no-any-return]


__all__ = [
    "ANNOUNCED",
    "DESCRIPTIONS",
    "REWARDS",
    "Description",
    "Reward",
    "check_reward_name",
    "checked_scores",
    "load_reward",
]
