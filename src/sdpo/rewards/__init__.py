"""Reward functions and models, by name."""

from sdpo.rewards.base import PlacedReward, Reward, checked_scores
from sdpo.rewards.registry import DESCRIPTIONS, REWARDS, Description, check_reward_name, load_reward, option_names

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
