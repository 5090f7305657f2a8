"""The embedded reward and judge on images that they must tell apart."""

from __future__ import annotations

import numpy as np
import torch

from sdpo.backbones import load_backbone
from sdpo.rewards import load_reward


def test_the_embedded_reward_and_judge_know_a_sample_from_noise() -> None:
    backbone = load_backbone("emoji")
    images = np.stack([np.asarray(image) for image in backbone.generate(["fox", "frog"], 8, [0, 1], 1.0)])
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    torch.manual_seed(0)
    score, judge = load_reward("emoji_score"), load_reward("emoji_judge")
    right = torch.as_tensor(score(pixels, ["fox", "frog"], [{}, {}]))
    wrong = torch.as_tensor(score(pixels, ["frog", "fox"], [{}, {}]))
    ruined = torch.as_tensor(score((pixels + 0.4 * torch.randn(pixels.shape)).clamp(0, 1), ["fox", "frog"], [{}, {}]))
    assert (right > wrong + 0.3).all() and (right > ruined + 0.1).all()
    assert torch.as_tensor(judge(pixels, ["a fox on a red background", "frog"], [{}, {}])).tolist() == [1, 1]
    assert torch.as_tensor(judge(pixels, ["frog", "a moon"], [{}, {}])).tolist() == [0, 0]
