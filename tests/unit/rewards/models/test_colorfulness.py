"""Colorfulness against numbers by hand."""

from __future__ import annotations

import pytest
import torch

from sdpo.rewards import load_reward


def test_colorfulness_of_greys_and_of_one_colour_by_hand() -> None:
    reward = load_reward("colorfulness")
    images = torch.zeros(2, 3, 4, 4)
    images[0] = 0.5
    images[1, 0] = 1.0  # pure red: rg = 255, yb = 127.5, no spread
    scores = reward(images, ["", ""], [{}, {}])
    assert torch.as_tensor(scores).tolist() == pytest.approx([0.0, 0.3 * (255**2 + 127.5**2) ** 0.5])
