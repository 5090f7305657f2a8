"""The rewards by name, and the user's own by dotted path; importing this module imports no torch."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

from sdpo.errors import UserError
from sdpo.system import dotted_path
from sdpo.system.torchvision import check_torchvision

if TYPE_CHECKING:
    from sdpo.rewards.base import Reward

# Each is a class or function that is called with `device` and the reward's options, and returns a `Reward`.
REWARDS: dict[str, str] = {
    "emoji_score": "sdpo.rewards.models.emoji:EmojiScore",
    "emoji_judge": "sdpo.rewards.models.emoji:EmojiJudge",
    "jpeg_compressibility": "sdpo.rewards.models.jpeg:JpegCompressibility",
    "jpeg_incompressibility": "sdpo.rewards.models.jpeg:JpegIncompressibility",
    "colorfulness": "sdpo.rewards.models.colorfulness:Colorfulness",
    "aesthetic": "sdpo.rewards.models.aesthetic:load",
    "imagereward": "sdpo.rewards.models.imagereward:load",
    "hpsv2": "sdpo.rewards.models.hpsv2:load",
    "hpsv2.1": "sdpo.rewards.models.hpsv2:load_v2_1",
    "pickscore": "sdpo.rewards.models.pickscore:load",
    "clipscore": "sdpo.rewards.models.clipscore:load",
    "http": "sdpo.rewards.remote.http:HttpReward",
    "vlm": "sdpo.rewards.remote.vlm:VlmJudge",
    "ray": "sdpo.rewards.remote.ray_pool:RayPool",
}


def check_reward_name(name: str) -> None:
    """Verify that a reward of this name exists, without loading its weights.

    Args:
        name: a name in `REWARDS`, or a dotted path `package.module:attribute`.

    Raises:
        UserError: if the name is unknown, or the path cannot be imported.
    """
    _find(name)


def load_reward(name: str, device: str = "cpu", options: Mapping[str, Any] | None = None) -> Reward:
    """Load a reward by its name, or the user's own by its dotted path: a function, or a class.

    Args:
        name: a name in `REWARDS`, or a dotted path `package.module:attribute`.
        device: the device for the reward's weights, if it has any.
        options: keyword arguments of the reward's class.

    Raises:
        UserError: if the name is unknown, or the reward cannot be built with these options.
    """
    check_torchvision()
    found = _find(name)
    options = dict(options or {})
    if name not in REWARDS and not isinstance(found, type):
        if options:
            raise UserError(f"reward_options: {name!r} is a function: only classes take options")
        return found
    if name in REWARDS:
        _check_choices(name, found, options)
    try:
        reward: Any = found(device=device, **options) if name in REWARDS else found(**options)
    except UserError:
        raise
    except Exception as error:  # the class may be the user's: building it can raise anything
        given = ", ".join(options) or "none"
        raise UserError(
            f"reward {name!r} cannot be built with the options given ({given}): {type(error).__name__}: {error}"
        ) from error
    if not callable(reward):
        raise UserError(f"rewards: instances of {name!r} cannot be called with (images, prompts, metadata)")
    return reward  # type: ignore[no-any-return]


def declares_gradient(name: str) -> bool | None:
    """Whether the user's own reward says that it has a gradient, as far as its function or class tells.

    Args:
        name: a dotted path `package.module:attribute`.

    Returns:
        None for a class without an attribute `differentiable`, whose instances may get one when they are built.

    Raises:
        UserError: if the path cannot be imported.
    """
    found = _find(name)
    declared = getattr(found, "differentiable", None)
    if isinstance(found, type):
        return declared if isinstance(declared, bool) else None
    return bool(declared)


def option_names(name: str) -> list[str]:
    """The names of the options that a reward accepts.

    Args:
        name: a name in `REWARDS`, or a dotted path `package.module:attribute`.

    Raises:
        UserError: if the name is unknown, or the path cannot be imported.
    """
    found = _find(name)
    if name not in REWARDS and not isinstance(found, type):
        return []  # a function is the reward itself
    try:
        parameters = inspect.signature(found).parameters
    except (TypeError, ValueError):  # a class written in C has no signature
        return []
    return [p for p in parameters if p != "device" or name not in REWARDS]


def _find(name: str) -> Callable[..., Any]:
    """Import the class or callable that a name or a dotted path stands for."""
    try:
        found = dotted_path.resolve(name, REWARDS, "reward", "my_module:my_reward")
    except UserError as error:
        raise UserError(f"rewards: {error}") from error
    if not callable(found):
        raise UserError(f"rewards: {name!r} is a {type(found).__name__}, not a callable (images, prompts, metadata).")
    return found  # type: ignore[no-any-return]


def _check_choices(name: str, found: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """Reject a value that the `Literal` annotation of an option does not list."""
    hints = get_type_hints(vars(found)["__init__"] if isinstance(found, type) and "__init__" in vars(found) else found)
    for key, value in options.items():
        if get_origin(hints.get(key)) is Literal and value not in get_args(hints[key]):
            choices = ", ".join(map(str, get_args(hints[key])))
            raise UserError(f"reward_options.{name}.{key} must be one of {choices}, not {value!r}")
