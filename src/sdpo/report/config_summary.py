"""A run's configuration in a few words. Settings that an older or damaged file lacks are tolerated."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def setting_name(setting: Any, key: str) -> str:
    """Return the name in a setting that is either the name itself or a mapping with the name at `key`."""
    if isinstance(setting, Mapping):
        setting = setting.get(key)
    return "unnamed" if setting is None else str(setting)


def rewards_text(config: Mapping[str, Any]) -> str:
    """Return the rewards with their weights."""
    rewards = config.get("rewards")
    if isinstance(rewards, Mapping):
        return ", ".join(str(n) if w == 1 else f"{n} × {w}" for n, w in rewards.items())
    return "unnamed" if rewards is None else str(rewards)


def trained_text(config: Mapping[str, Any]) -> str:
    """Return which weights are trained."""
    lora = config.get("lora")
    return f"LoRA, rank {lora.get('rank', '?')}" if isinstance(lora, Mapping) else "all weights (full fine-tuning)"
