"""Reward functions and models, by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

from sdpo.errors import UserError
from sdpo.rewards.base import Reward, resolve
from sdpo.rewards.models.weights import SOURCES
from sdpo.system.torchvision import check_torchvision

# Each names a class or function that is called with `device` and the reward's options, and gives a `Reward`.
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


@dataclass(frozen=True)
class Description:
    """A line of `sdpo rewards`.

    Attributes:
        name: in the config.
        range: of its scores.
        text: what it is and what it needs.
        reads_prompt: whether the score depends on the prompt.
    """

    name: str
    range: str
    text: str
    reads_prompt: bool = True

    @property
    def licence(self) -> str:
        """Of the weights."""
        glyphs = "MIT, OFL-1.1" if self.name.startswith("emoji") else "MIT"
        return ", ".join(dict.fromkeys(s.licence for s in SOURCES.get(self.name, ()))) or glyphs

    @property
    def size(self) -> int:
        """Bytes to download."""
        return 1_000_000 * sum(s.megabytes for s in SOURCES.get(self.name, ()))


DESCRIPTIONS = (
    Description("emoji_score", "-1 … 1", "cosine of image and prompt, for the embedded model (comes with the package)"),
    Description("emoji_judge", "0 or 1", "is the right animal recognised? for evaluation, not for training"),
    Description(
        "jpeg_compressibility",
        "< 0",
        "minus the size as JPEG, quality 95, in kB (Black et al. 2023)",
        reads_prompt=False,
    ),
    Description(
        "jpeg_incompressibility", "> 0", "the size as JPEG, quality 95, in kB (Black et al. 2023)", reads_prompt=False
    ),
    Description("colorfulness", ">= 0", "M of Hasler & Süsstrunk 2003, for pixels of 0 … 255", reads_prompt=False),
    Description("aesthetic", "1 … 10", "LAION aesthetic predictor on CLIP ViT-L/14; images alone", reads_prompt=False),
    Description("imagereward", "-2 … 2", "ImageReward v1.0 (Xu et al. 2023)"),
    Description("hpsv2", "0.2 … 0.35", "Human Preference Score v2 (Wu et al. 2023)"),
    Description("hpsv2.1", "0.2 … 0.35", "Human Preference Score v2.1"),
    Description("pickscore", "18 … 24", "PickScore v1 (Kirstain et al. 2023)"),
    Description("clipscore", "0.3 … 0.9", "2.5 · cosine of CLIP ViT-L/14 (Hessel et al. 2021)"),
    Description("http", "the server's", "your server, JSON over HTTP; reward_options.http.url", reads_prompt=False),
    Description(
        "vlm", "0 … 1", "a vision-language model behind an OpenAI-compatible API; reward_options.vlm.base_url, .model"
    ),
    Description("ray", "its own", "any reward in a pool of Ray actors; reward_options.ray.reward", reads_prompt=False),
)


def check_reward_name(name: str) -> None:
    """Fail early on a name that no reward has; loads no weights.

    Raises:
        UserError: see `resolve`.
    """
    resolve(name, REWARDS)


def load_reward(name: str, device: str = "cpu", options: Mapping[str, Any] | None = None) -> Reward:
    """Instantiate a reward by its name, or the user's own by its dotted path: a function, or a class without arguments.

    Args:
        name: in `REWARDS`, or `package.module:attribute`.
        device: where its weights, if it has any, are to lie.
        options: keyword arguments of its class.

    Raises:
        UserError: if there is none of that name, or it cannot be built.
    """
    check_torchvision()
    found = resolve(name, REWARDS)
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


def option_names(name: str) -> list[str]:
    """The options that a reward's class has.

    Raises:
        UserError: see `resolve`.
    """
    found = resolve(name, REWARDS)
    if name not in REWARDS and not isinstance(found, type):
        return []  # a function: it is the reward itself
    try:
        parameters = inspect.signature(found).parameters
    except (TypeError, ValueError):  # a class of C code tells nothing
        return []
    return [p for p in parameters if p != "device" or name not in REWARDS]


def _check_choices(name: str, found: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """Refuse a value that an option's `Literal` annotation does not list."""
    hints = get_type_hints(vars(found)["__init__"] if isinstance(found, type) and "__init__" in vars(found) else found)
    for key, value in options.items():
        if get_origin(hints.get(key)) is Literal and value not in get_args(hints[key]):
            choices = ", ".join(map(str, get_args(hints[key])))
            raise UserError(f"reward_options.{name}.{key} must be one of {choices}, not {value!r}")
