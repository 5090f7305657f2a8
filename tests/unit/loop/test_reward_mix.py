"""The weighted sum of several rewards."""

from __future__ import annotations

import pytest
import torch

from sdpo.loop.reward_mix import RewardMix


def test_several_rewards_are_standardised_by_all_scores_so_far() -> None:
    mix = RewardMix({"a": lambda *x: [], "b": lambda *x: []}, {"a": 1.0, "b": 2.0})  # type: ignore[dict-item]
    mix.observe({"a": torch.tensor([0.0, 2.0]), "b": torch.tensor([0.0, 200.0])})
    mix.observe({"a": torch.tensor([0.0, 2.0]), "b": torch.tensor([0.0, 200.0])})
    combined = mix.combine({"a": torch.tensor([2.0, 0.0]), "b": torch.tensor([200.0, 200.0])})
    assert combined.tolist() == pytest.approx([3.0, 1.0], rel=1e-4)
    restored = RewardMix(mix.rewards, mix.weights)
    restored.load_state_dict(mix.state_dict())
    assert restored.combine({"a": torch.ones(1), "b": torch.zeros(1)}).item() == pytest.approx(-2.0, rel=1e-4)
