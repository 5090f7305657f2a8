"""The embedded reward and judge on images that they must tell apart."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from sdpo.backbones import load_backbone
from sdpo.errors import UserError
from sdpo.rewards import load_reward
from sdpo.rewards.models import emoji


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


@pytest.mark.parametrize(("reward", "folder"), [(emoji.EmojiScore, "scorer"), (emoji.EmojiJudge, "judge")])
@pytest.mark.parametrize("damage", ["dropped", "renamed"])
def test_a_model_that_does_not_load_as_it_is_in_its_file_is_refused(
    reward: type, folder: str, damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With random weights in the place of what it lacks, it would score all images alike."""
    shutil.copytree(emoji._ASSETS / folder, tmp_path / folder)
    monkeypatch.setattr(emoji, "_ASSETS", tmp_path)
    reward()
    file = tmp_path / folder / "model.safetensors"
    state = load_file(file)
    name = max(name for name in state if name.endswith("weight"))
    weight = state.pop(name)
    if damage == "renamed":
        state[f"other.{name}x"] = weight
    save_file(state, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match=rf"reward 'emoji_\w+': the model in .*{folder} was not loaded .*{name}"):
        reward()
