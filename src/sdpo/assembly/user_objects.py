"""The objects that a caller in Python gives beside the configuration: a pipeline, a reward, prompts."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

from sdpo.assembly.model import describe_pipeline
from sdpo.config import Config
from sdpo.errors import UserError
from sdpo.rewards.base import Reward
from sdpo.rewards.registry import REWARDS
from sdpo.system.dotted_path import IN_PYTHON, is_dotted, path_to

GivenPrompts = str | os.PathLike[str] | Sequence[str] | Sequence[dict[str, Any]] | Mapping[str, Any]
"""A named set or a file, a list of prompts, or the section `prompts` of a configuration."""


@dataclass(frozen=True)
class Given:
    """The user's own objects, which replace parts that the configuration names.

    Attributes:
        pipeline: a diffusers pipeline instead of `model`.
        reward: a callable `(images, prompts, metadata) → scores` instead of `rewards`.
        prompts: prompts instead of `prompts.train` and `prompts.unseen`: a list of them, a named set or a file, or a
            mapping of `train` and `unseen` to any of these.
    """

    pipeline: Any = None
    reward: Reward | Callable[..., Any] | None = None
    prompts: GivenPrompts | None = None

    @property
    def rewards(self) -> dict[str, Any]:
        """The user's own reward by the name under which the run records it; empty where there is none."""
        return {} if self.reward is None else {_name(self.reward): self.reward}

    def describe(self, config: Config) -> Config:
        """Describe these objects in a configuration, and validate the result.

        Options of rewards that the user's own reward replaces are left out.

        Args:
            config: the configuration that the caller gave.

        Raises:
            UserError: if the reward cannot be called, the prompts have no order, or the result is not a valid
                configuration.
        """
        data = config.model_dump(mode="json")
        if self.prompts is not None:
            data["prompts"] = _describe_prompts(self.prompts, data["prompts"])
        if self.reward is not None:
            data["rewards"] = dict.fromkeys(self.rewards, 1.0)
            named = {*data["rewards"], *config.evaluate.observers}
            data["reward_options"] = {name: value for name, value in data["reward_options"].items() if name in named}
        if self.pipeline is not None:
            data["model"] = describe_pipeline(config.model, self.pipeline)
        return Config.parse(data)


def _describe_prompts(prompts: Any, section: dict[str, Any]) -> dict[str, Any]:
    """The section `prompts` of a configuration: a string names a set or a file, as it does there."""
    if isinstance(prompts, Mapping):
        return {**section, **{key: _source(value) for key, value in prompts.items()}}
    return {"train": _source(prompts), "unseen": None}


def _source(prompts: Any) -> str | list[Any] | None:
    """The name of a set or a file, or a list of prompts; None leaves them out."""
    if prompts is None:
        return None
    if isinstance(prompts, str | os.PathLike):
        return os.fspath(prompts)
    if isinstance(prompts, Set) or not isinstance(prompts, Iterable):
        raise UserError(
            f"Trainer(prompts=…) is a {type(prompts).__name__}: give a list of prompts, or the name of a set or a file"
        )
    return list(prompts)


def _name(reward: Any) -> str:
    """The name under which a run records the user's own reward, and which stands for no other reward.

    It is the reward's own name. Where a built-in reward has that name, it is the dotted path of a function that can be
    imported, and a name that no command knows for any other.
    """
    if isinstance(reward, type) or not callable(reward):
        raise UserError(
            f"Trainer(reward=…) is {reward!r}, not a function or an object to call with (images, prompts, metadata): "
            "give an instance of a class; to name a reward, use Config.load(rewards={name: 1.0})"
        )
    own: str = getattr(reward, "__name__", type(reward).__name__)
    if own not in REWARDS and not is_dotted(own):
        return own
    return path_to(reward) or f"{IN_PYTHON} {own}"
