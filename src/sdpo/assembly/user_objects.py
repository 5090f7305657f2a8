"""The objects that a caller in Python gives beside the configuration: a pipeline, a reward, prompts."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdpo.assembly.model import describe_pipeline
from sdpo.config import Config
from sdpo.config.load import read_mapping
from sdpo.errors import UserError
from sdpo.rewards.base import Reward
from sdpo.rewards.registry import REWARDS
from sdpo.run.directory import DEFAULT, RunDirectory
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

    def rewards(self, config: Config) -> dict[str, Any]:
        """The user's own reward by the name under which the run records it; empty where there is none.

        Args:
            config: the configuration that `describe` returned.
        """
        return {} if self.reward is None else dict.fromkeys(config.rewards, self.reward)

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
            data["rewards"] = {_name(self.reward, config): 1.0}
            named = {*data["rewards"], *config.evaluate.observers}
            data["reward_options"] = {name: value for name, value in data["reward_options"].items() if name in named}
        if self.pipeline is not None:
            data["model"] = describe_pipeline(config.model, self.pipeline)
        return Config.parse(data)


def _describe_prompts(prompts: Any, section: dict[str, Any]) -> dict[str, Any]:
    """The section `prompts` of a configuration: a string names a set or a file, as it does there."""
    if isinstance(prompts, Mapping):
        return {**section, **prompts}
    if isinstance(prompts, str | os.PathLike):
        return {"train": os.fspath(prompts), "unseen": None}
    if isinstance(prompts, Set) or not isinstance(prompts, Iterable):
        raise UserError(
            f"Trainer(prompts=…) is a {type(prompts).__name__}: give a list of prompts, or the name of a set or a file"
        )
    return {"train": list(prompts), "unseen": None}


def _name(reward: Any, config: Config) -> str:
    """The name under which a run records the user's own reward, which no command takes for another reward.

    A function that can be imported has its dotted path. Any other has its own name, marked where that would be taken
    for a built-in reward or for a dotted path.
    """
    if isinstance(reward, type) or not callable(reward):
        raise UserError(
            f"Trainer(reward=…) is {reward!r}, not a function or an object to call with (images, prompts, metadata): "
            "give an instance of a class; to name a reward, use Config.load(rewards={name: 1.0})"
        )
    own: str = getattr(reward, "__name__", type(reward).__name__)
    ambiguous = own in REWARDS or is_dotted(own)
    if not ambiguous and _recorded_rewards(config) == [own]:
        return own  # the run was begun by a version that recorded no dotted paths
    return path_to(reward) or (f"{IN_PYTHON} {own}" if ambiguous else own)


def _recorded_rewards(config: Config) -> list[str]:
    """The names of the rewards of the run that the configuration may resume."""
    run = RunDirectory(Path(config.output_dir or DEFAULT))
    try:
        return list(read_mapping(run.config).get("rewards") or []) if run.is_run else []
    except (OSError, ValueError, TypeError, UserError):
        return []  # no run, or a damaged one: the session says so when it starts
