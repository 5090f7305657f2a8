"""The objects that a caller in Python gives beside the configuration: a pipeline, a reward, prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sdpo.assembly.model import describe_pipeline
from sdpo.config import Config
from sdpo.rewards.base import Reward


@dataclass(frozen=True)
class Given:
    """The user's own objects, which replace parts that the configuration names.

    Attributes:
        pipeline: a diffusers pipeline instead of `model`.
        reward: a callable `(images, prompts, metadata) → scores` instead of `rewards`.
        prompts: prompts instead of `prompts.train` and `prompts.unseen`.
    """

    pipeline: Any = None
    reward: Reward | Callable[..., Any] | None = None
    prompts: Sequence[str] | None = None

    @property
    def rewards(self) -> dict[str, Any]:
        """The user's own reward by the name under which the run records it; empty where there is none."""
        if self.reward is None:
            return {}
        return {getattr(self.reward, "__name__", type(self.reward).__name__): self.reward}

    def describe(self, config: Config) -> Config:
        """Describe these objects in a configuration, and validate the result.

        Options of rewards that the user's own reward replaces are left out.

        Args:
            config: the configuration that the caller gave.

        Raises:
            UserError: if the result is not a valid configuration.
        """
        data = config.model_dump(mode="json")
        if self.prompts is not None:
            data["prompts"] = {"train": list(self.prompts), "unseen": None}
        if self.reward is not None:
            data["rewards"] = dict.fromkeys(self.rewards, 1.0)
            named = {*data["rewards"], *config.evaluate.observers}
            data["reward_options"] = {name: value for name, value in data["reward_options"].items() if name in named}
        if self.pipeline is not None:
            data["model"] = describe_pipeline(config.model, self.pipeline)
        return Config.parse(data)
