"""Rewards: functions and models that score images, by name or by the user's own dotted path."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__all__ = [
    "DESCRIPTIONS",
    "REWARDS",
    "Description",
    "PlacedReward",
    "Reward",
    "check_reward_name",
    "checked_scores",
    "load_reward",
    "option_names",
]

if TYPE_CHECKING:
    from sdpo.rewards.base import PlacedReward, Reward, checked_scores
    from sdpo.rewards.descriptions import DESCRIPTIONS, Description
    from sdpo.rewards.registry import REWARDS, check_reward_name, load_reward, option_names

_MODULES = {
    "DESCRIPTIONS": "descriptions",
    "REWARDS": "registry",
    "Description": "descriptions",
    "PlacedReward": "base",
    "Reward": "base",
    "check_reward_name": "registry",
    "checked_scores": "base",
    "load_reward": "registry",
    "option_names": "registry",
}


def __getattr__(name: str) -> Any:
    """Import a name's module when the name is first used: the registry needs no torch, the rest does."""
    import importlib

    if name in _MODULES:
        return getattr(importlib.import_module(f"sdpo.rewards.{_MODULES[name]}"), name)
    raise AttributeError(f"module 'sdpo.rewards' has no attribute {name!r}")
