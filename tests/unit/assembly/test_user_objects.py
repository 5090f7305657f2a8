"""The user's own objects, described in a configuration."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sdpo import Config
from sdpo.assembly.model import IN_PYTHON
from sdpo.assembly.user_objects import Given
from sdpo.errors import UserError


def brightness(images: torch.Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> torch.Tensor:
    return images.mean((1, 2, 3))


def test_nothing_given_changes_nothing() -> None:
    config = Config.load("emoji", prompts={"unseen": ["a cow"]}, reward_options={"emoji_judge": {}})
    assert Given().describe(config) == config and Given().rewards == {}


def test_a_reward_replaces_the_rewards_and_their_options() -> None:
    config = Config.load(
        "emoji",
        rewards={"clipscore": 0.5, "jpeg_compressibility": 2.0},
        evaluate={"held_out": ["aesthetic"]},
        reward_options={"clipscore": {"a": 1}, "aesthetic": {"b": 2}},
    )
    config.rewards.pop("emoji_score", None)
    described = Given(reward=brightness).describe(config)
    assert described.rewards == {"brightness": 1.0}
    assert described.reward_options == {"aesthetic": {"b": 2}}, "options of rewards that are still used stay"
    assert Config.parse(described.model_dump(mode="json")) == described, "a resumed run reads it"
    assert Given(reward=brightness).rewards == {"brightness": brightness}


def test_prompts_replace_training_and_unseen_prompts() -> None:
    config = Config.load("emoji", prompts={"unseen": ["a cow"]})
    described = Given(prompts=("a moon", "a sun")).describe(config)
    assert described.prompts.train == ["a moon", "a sun"] and described.prompts.unseen is None


def test_a_pipeline_says_where_it_came_from_and_its_precision() -> None:
    network = SimpleNamespace(dtype=torch.bfloat16)
    named = SimpleNamespace(transformer=network, name_or_path="some/model")
    described = Given(pipeline=named).describe(Config.load("emoji")).model
    assert (described.path, described.dtype) == ("some/model", "bfloat16")
    assert Given(pipeline=SimpleNamespace(unet=network)).describe(Config.load("emoji")).model.path == IN_PYTHON
    with pytest.raises(UserError, match="float64: load it in one of"):
        Given(pipeline=SimpleNamespace(unet=SimpleNamespace(dtype=torch.float64))).describe(Config.load("emoji"))


def test_the_result_is_validated() -> None:
    with pytest.raises(UserError, match="held_out names brightness"):
        Given(reward=brightness).describe(Config.load("emoji", evaluate={"held_out": ["brightness"]}))
