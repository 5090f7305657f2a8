"""ImageReward v1.0 (Xu et al. 2023, arXiv 2304.05977): BLIP with a linear head; about -2 … 2.

The weights stay in float32: the rounding of bfloat16 would be 3 % of the standard deviation of the scores.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sdpo.errors import UserError
from sdpo.rewards.models.clip import Mode
from sdpo.rewards.models.frozen import frozen_model, read_tensors
from sdpo.rewards.models.heads import LinearHead, collapse
from sdpo.rewards.models.pixels import Resize, model_pixels
from sdpo.rewards.models.weights import locate

MEAN, STD = 0.16717362830052426, 1.0333394966054072  # of the raw scores, as published
_TOKENS = 35  # the longest prompt

VISION: dict[str, Any] = dict(
    hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, image_size=224,
    patch_size=16, hidden_act="gelu", layer_norm_eps=1e-6,
)  # fmt: skip
TEXT: dict[str, Any] = dict(
    vocab_size=30524, hidden_size=768, encoder_hidden_size=1024, intermediate_size=3072, num_hidden_layers=12,
    num_attention_heads=12, max_position_embeddings=512, hidden_act="gelu", layer_norm_eps=1e-12, pad_token_id=0,
    bos_token_id=30522, sep_token_id=102,
)  # fmt: skip

_VISION_NAMES = (
    (r"^cls_token$", "embeddings.class_embedding"),
    (r"^pos_embed$", "embeddings.position_embedding"),
    (r"^patch_embed\.proj\.", "embeddings.patch_embedding."),
    (r"^blocks\.(\d+)\.norm([12])\.", r"encoder.layers.\1.layer_norm\2."),
    (r"^blocks\.(\d+)\.attn\.qkv\.", r"encoder.layers.\1.self_attn.qkv."),
    (r"^blocks\.(\d+)\.attn\.proj\.", r"encoder.layers.\1.self_attn.projection."),
    (r"^blocks\.(\d+)\.mlp\.", r"encoder.layers.\1.mlp."),
    (r"^norm\.", "post_layernorm."),
)
# The projections of BLIP's contrastive loss, and a buffer; the score uses none of them.
_UNUSED = re.compile(r"^blip\.(vision_proj\.|text_proj\.|text_encoder\.embeddings\.position_ids$)")


def split_checkpoint(
    state: Mapping[str, Tensor],
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """Split ImageReward's checkpoint into its three parts.

    Args:
        state: the checkpoint's state dict.

    Returns:
        The state dicts of the vision model and the text model, under transformers' names, and of the head.

    Raises:
        UserError: if a key belongs to no part.
    """
    vision: dict[str, Tensor] = {}
    text: dict[str, Tensor] = {}
    head: dict[str, Tensor] = {}
    for key, value in state.items():
        if _UNUSED.match(key):
            continue
        if key.startswith("blip.visual_encoder."):
            vision[_renamed(key.removeprefix("blip.visual_encoder."))] = value
        elif key.startswith("blip.text_encoder."):
            text[key.removeprefix("blip.text_encoder.")] = value
        elif key.startswith("mlp."):
            head[key.removeprefix("mlp.")] = value
        else:
            raise UserError(f"imagereward: unexpected key {key!r}: not ImageReward's checkpoint")
    return vision, text, head


def _renamed(key: str) -> str:
    for pattern, replacement in _VISION_NAMES:
        new, count = re.subn(pattern, replacement, key)
        if count:
            return new
    return key  # the strict loading that follows rejects it


class ImageReward:
    """Scores the first token of BLIP's text encoder, which attends to the image.

    Args:
        vision: a frozen `BlipVisionModel`.
        text: a frozen `BlipTextModel` with cross-attention.
        head: a linear head on the text model's hidden state [N, D].
        tokenizer: a BERT tokenizer.
        mode: `official` subtracts the published mean and divides by the published standard deviation; `sdpo` returns
            the raw score.
        resize: `float` resizes differentiably; `pil` rounds as Pillow does, without a gradient.

    Attributes:
        differentiable: whether the scores have a gradient at the images.
    """

    def __init__(
        self,
        vision: nn.Module,
        text: nn.Module,
        head: LinearHead,
        tokenizer: Any,
        *,
        mode: Mode = "official",
        resize: Resize = "float",
    ) -> None:
        self.vision: Any = vision
        self.text: Any = text
        self.head = head
        self.tokenizer = tokenizer
        self.mode = mode
        self.resize = resize
        self.differentiable = resize == "float"

    def to(self, device: torch.device | str) -> ImageReward:
        """Move the weights to a device."""
        for module in (self.vision, self.text, self.head):
            module.to(device)
        return self

    def __call__(self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> Tensor:
        """Score images against their prompts.

        Args:
            images: float [N, 3, H, W] in [0, 1].
            prompts: the N prompts of the images.
            metadata: ignored.

        Returns:
            Scores, float32 [N].
        """
        device = self.head.weight.device
        size = self.vision.config.image_size
        pixels = model_pixels(images.to(device), size, "clip" if self.mode == "official" else "hf", self.resize)
        return self.score_pixels(pixels, *self.tokenize(prompts))

    def tokenize(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Tokenize N prompts to token ids and attention mask, int64 [N, 35] each."""
        length = min(_TOKENS, self.text.config.max_position_embeddings)
        tokens = self.tokenizer(
            list(prompts), padding="max_length", truncation=True, max_length=length, return_tensors="pt"
        )
        device = self.head.weight.device
        return tokens.input_ids.to(device), tokens.attention_mask.to(device)

    def score_pixels(self, pixels: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Compute the scores [N] of normalised pixels [N, 3, S, S] and tokens [N, L] with their mask [N, L]."""
        raw = self.head(self.text_features(pixels, input_ids, attention_mask))
        return (raw - MEAN) / STD if self.mode == "official" else raw

    def text_features(self, pixels: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Compute the text model's last hidden state at its first token, [N, D]."""
        image = self.vision(pixel_values=pixels).last_hidden_state
        output = self.text(
            input_ids=input_ids,
            attention_mask=attention_mask,
            encoder_hidden_states=image,
            encoder_attention_mask=torch.ones(image.shape[:2], dtype=torch.long, device=image.device),
            is_decoder=False,  # the text attends to itself in both directions
        )
        return output.last_hidden_state[:, 0]


def build_models(
    state: Mapping[str, Tensor], vision: Mapping[str, Any], text: Mapping[str, Any], where: str
) -> tuple[nn.Module, nn.Module, LinearHead]:
    """Build the frozen vision model, text model and head with the weights of a checkpoint.

    Args:
        state: the checkpoint's state dict.
        vision: keyword arguments of `BlipVisionConfig`.
        text: keyword arguments of `BlipTextConfig`.
        where: the file of the weights, for messages.

    Raises:
        UserError: if the weights are not exactly those of the three parts.
    """
    from transformers import BlipTextModel, BlipVisionConfig, BlipVisionModel
    from transformers.models.blip.configuration_blip import BlipTextConfig

    vision_state, text_state, head_state = split_checkpoint(state)
    vision_config = BlipVisionConfig(**vision)
    text_config = BlipTextConfig(**text, is_decoder=True)  # creates the cross-attention
    return (
        frozen_model(lambda: BlipVisionModel(vision_config), vision_state, where),
        frozen_model(lambda: BlipTextModel(text_config, add_pooling_layer=False), text_state, where),
        LinearHead(*collapse(head_state, where)),
    )


def load(
    device: str = "cpu", *, path: str | None = None, mode: Mode = "official", resize: Resize = "float"
) -> ImageReward:
    """Load ImageReward from a folder or the hub.

    Args:
        device: the device for the weights.
        path: a folder with the files; None uses `$SDPO_REWARDS` or the Hugging Face hub.
        mode: `official` subtracts the published mean and divides by the published standard deviation; `sdpo` returns
            the raw score.
        resize: `float` resizes differentiably; `pil` rounds as Pillow does, without a gradient.

    Raises:
        UserError: if a file is missing, cannot be downloaded, or does not hold the model's weights.
    """
    from transformers import BertTokenizer

    files = locate("imagereward", path)
    parts = build_models(read_tensors(files["ImageReward.pt"]), VISION, TEXT, str(files["ImageReward.pt"]))
    tokenizer = BertTokenizer(vocab=str(files["vocab.txt"]))
    return ImageReward(*parts, tokenizer, mode=mode, resize=resize).to(device)
