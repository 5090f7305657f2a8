"""The rewards without weights by hand, and the embedded ones on images they must tell apart."""

from __future__ import annotations

import io

import pytest
import torch
from PIL import Image

from sdpo.loop.reward_mix import RewardMix
from sdpo.rewards import load_reward


def test_colorfulness_of_greys_and_of_one_colour_by_hand() -> None:
    reward = load_reward("colorfulness")
    images = torch.zeros(2, 3, 4, 4)
    images[0] = 0.5
    images[1, 0] = 1.0  # pure red: rg = 255, yb = 127.5, no spread
    scores = reward(images, ["", ""], [{}, {}])
    assert torch.as_tensor(scores).tolist() == pytest.approx([0.0, 0.3 * (255**2 + 127.5**2) ** 0.5])


def test_jpeg_size_is_that_of_a_real_file() -> None:
    torch.manual_seed(0)
    noise = torch.rand(1, 3, 32, 32)
    buffer = io.BytesIO()
    pixels = (noise[0] * 255).round().byte().permute(1, 2, 0).numpy()
    Image.fromarray(pixels).save(buffer, format="JPEG", quality=95)
    large = torch.as_tensor(load_reward("jpeg_incompressibility")(noise, [""], [{}]))
    small = torch.as_tensor(load_reward("jpeg_compressibility")(noise, [""], [{}]))
    assert large.item() == pytest.approx(len(buffer.getvalue()) / 1000) and small.item() == pytest.approx(-large.item())


def test_the_embedded_reward_and_judge_know_a_sample_from_noise() -> None:
    from sdpo.backbones import load_backbone

    backbone = load_backbone("emoji")
    images = [
        torch.from_numpy(__import__("numpy").array(i)) for i in backbone.generate(["fox", "frog"], 8, [0, 1], 1.0)
    ]
    pixels = torch.stack(images).permute(0, 3, 1, 2).float() / 255
    torch.manual_seed(0)
    score, judge = load_reward("emoji_score"), load_reward("emoji_judge")
    right = torch.as_tensor(score(pixels, ["fox", "frog"], [{}, {}]))
    wrong = torch.as_tensor(score(pixels, ["frog", "fox"], [{}, {}]))
    ruined = torch.as_tensor(score((pixels + 0.4 * torch.randn(pixels.shape)).clamp(0, 1), ["fox", "frog"], [{}, {}]))
    assert (right > wrong + 0.3).all() and (right > ruined + 0.1).all()
    assert torch.as_tensor(judge(pixels, ["a fox on a red background", "frog"], [{}, {}])).tolist() == [1, 1]
    assert torch.as_tensor(judge(pixels, ["frog", "a moon"], [{}, {}])).tolist() == [0, 0]


def test_several_rewards_are_standardised_by_all_scores_so_far() -> None:
    mix = RewardMix({"a": lambda *x: [], "b": lambda *x: []}, {"a": 1.0, "b": 2.0})  # type: ignore[dict-item]
    mix.observe({"a": torch.tensor([0.0, 2.0]), "b": torch.tensor([0.0, 200.0])})
    mix.observe({"a": torch.tensor([0.0, 2.0]), "b": torch.tensor([0.0, 200.0])})
    combined = mix.combine({"a": torch.tensor([2.0, 0.0]), "b": torch.tensor([200.0, 200.0])})
    assert combined.tolist() == pytest.approx([3.0, 1.0], rel=1e-4)
    restored = RewardMix(mix.rewards, mix.weights)
    restored.load_state_dict(mix.state_dict())
    assert restored.combine({"a": torch.ones(1), "b": torch.zeros(1)}).item() == pytest.approx(-2.0, rel=1e-4)
