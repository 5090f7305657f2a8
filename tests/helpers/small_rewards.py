"""The reward models at a small size, with random weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from sdpo.backbones.load import EMBEDDED
from sdpo.rewards.models import aesthetic, clip, clipscore, heads, hpsv2, imagereward, pickscore


def tiny_clip(seed: int = 0) -> nn.Module:
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(seed)
    tower = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, hidden_act="gelu")
    vocabulary = json.loads((EMBEDDED["emoji"] / "tokenizer" / "tokenizer.json").read_text())["model"]["vocab"]
    size = max(vocabulary.values()) + 1
    text = dict(tower, vocab_size=size, max_position_embeddings=16, eos_token_id=size - 1, bos_token_id=size - 2)
    vision = dict(tower, image_size=32, patch_size=8)
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)).eval().requires_grad_(False)


def tiny_tokenizer() -> Any:
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(EMBEDDED["emoji"] / "tokenizer")


def head_state(size: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    sizes = [size, 64, 32, 16, 8, 1]
    state = {}
    for index, (inputs, outputs) in zip(heads.LAYERS, zip(sizes, sizes[1:], strict=False), strict=True):
        state[f"layers.{index}.weight"] = torch.randn(outputs, inputs, generator=generator) / inputs**0.5
        state[f"layers.{index}.bias"] = torch.randn(outputs, generator=generator)
    return state


def tiny_imagereward(mode: clip.Mode = "official", resize: Any = "float") -> imagereward.ImageReward:
    from transformers import BertTokenizer, BlipTextModel, BlipVisionConfig, BlipVisionModel
    from transformers.models.blip.configuration_blip import BlipTextConfig

    torch.manual_seed(0)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "cat", "two", "dog", "dogs", "##s", "b", "&", ";", "lt"]
    tower = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)
    vision = BlipVisionModel(BlipVisionConfig(**tower, image_size=32, patch_size=8))
    text = BlipTextModel(
        BlipTextConfig(
            **tower, vocab_size=len(words), encoder_hidden_size=32, max_position_embeddings=64, is_decoder=True
        ),
        add_pooling_layer=False,
    )
    tokenizer = BertTokenizer(vocab={word: i for i, word in enumerate(words)})
    for module in (vision, text):
        module.eval().requires_grad_(False)
    head = heads.LinearHead(*heads.collapse(head_state(32), "tiny"))
    return imagereward.ImageReward(vision, text, head, tokenizer, mode=mode, resize=resize)


MAKERS: dict[str, Callable[..., Any]] = {
    "aesthetic": lambda mode, resize: aesthetic.Aesthetic(
        tiny_clip(), heads.LinearHead(*heads.collapse(head_state(24), "tiny")), resize=resize
    ),
    "imagereward": tiny_imagereward,
    "hpsv2": lambda mode, resize: hpsv2.HPSv2(tiny_clip(), tiny_tokenizer(), mode=mode, resize=resize),
    "pickscore": lambda mode, resize: pickscore.PickScore(tiny_clip(), tiny_tokenizer(), mode=mode, resize=resize),
    "clipscore": lambda mode, resize: clipscore.ClipScore(tiny_clip(), tiny_tokenizer(), resize=resize),
}
