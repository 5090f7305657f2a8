"""Tiny checkpoints in the released key layouts, against what the authors' code gives for them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from sdpo.errors import UserError
from sdpo.rewards.models import hpsv2, imagereward


def golden(name: str) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Any]]:
    """Checkpoint, inputs and outputs, and configuration."""
    with safe_open(Path(__file__).parent / f"{name}.safetensors", "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}
        config = json.loads(file.metadata()["config"])
    known = {key: value for key, value in tensors.items() if key.startswith(("input.", "expected."))}
    return {key: value for key, value in tensors.items() if key not in known}, known, config


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("one_by_one", [False, True])
def test_imagereward(one_by_one: bool) -> None:
    state, known, config = golden("imagereward_tiny")
    vision, text, head = imagereward.build_models(state, config["vision"], config["text"], "tiny")
    pixels, ids, mask = (known[f"input.{k}"] for k in ("pixel_values", "input_ids", "attention_mask"))
    close(vision(pixel_values=pixels).last_hidden_state, known["expected.image_embeds"])
    rows = [slice(i, i + 1) for i in range(3)] if one_by_one else [slice(None)]
    for mode, expected in (("official", "expected.score"), ("sdpo", "expected.score_raw")):
        reward = imagereward.ImageReward(vision, text, head, None, mode=mode)  # type: ignore[arg-type]
        close(
            torch.cat([reward.text_features(pixels[r], ids[r], mask[r]) for r in rows]), known["expected.text_features"]
        )
        close(torch.cat([reward.score_pixels(pixels[r], ids[r], mask[r]) for r in rows]), known[expected].flatten())


def test_imagereward_refuses_what_it_does_not_know() -> None:
    state, _, config = golden("imagereward_tiny")
    missing = {k: v for k, v in state.items() if k != "blip.visual_encoder.norm.bias"}
    with pytest.raises(UserError, match="post_layernorm.bias"):
        imagereward.build_models(missing, config["vision"], config["text"], "tiny")
    with pytest.raises(UserError, match="surplus"):
        imagereward.build_models({**state, "surplus": torch.zeros(1)}, config["vision"], config["text"], "tiny")
    surplus = {**state, "blip.text_encoder.surplus.weight": torch.zeros(1)}
    with pytest.raises(UserError, match="surplus"):
        imagereward.build_models(surplus, config["vision"], config["text"], "tiny")


@pytest.mark.parametrize("one_by_one", [False, True])
def test_hpsv2(one_by_one: bool) -> None:
    state, known, config = golden("hpsv2_tiny")
    model = hpsv2.build_model(
        state,
        {
            "projection_dim": config["projection_dim"],
            "vision_config": config["vision"],
            "text_config": config["text"],
        },
        "tiny",
    )
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    reward = hpsv2.HPSv2(model, None)
    rows = [slice(i, i + 1) for i in range(4)] if one_by_one else [slice(None)]
    unit = torch.nn.functional.normalize
    image = torch.cat([unit(reward.embed_pixels(known["input.pixel_values"][r]), dim=-1) for r in rows])
    text = torch.cat([unit(reward.embed_tokens(known["input.input_ids"][r]), dim=-1) for r in rows])
    close(image, known["expected.image_features"])
    close(text, known["expected.text_features"])
    close((image * text).sum(-1), known["expected.score"])


def test_hpsv2_refuses_what_it_does_not_know() -> None:
    state, _, config = golden("hpsv2_tiny")
    settings = {k: config[k if k == "projection_dim" else k.removesuffix("_config")] for k in hpsv2.VIT_H_14}
    with pytest.raises(UserError, match="surplus"):
        hpsv2.build_model({**state, "surplus": torch.zeros(1)}, settings, "tiny")
    with pytest.raises(UserError, match="token_embedding"):
        hpsv2.build_model({k: v for k, v in state.items() if k != "token_embedding.weight"}, settings, "tiny")
