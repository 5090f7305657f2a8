"""The embedded model's reward and its independent judge; both were trained by tools/build_embedded.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sdpo.rewards.models.clip import features

_ASSETS = Path(__file__).parents[2] / "assets" / "emoji"
_SIZE = 64


def _pixels(images: Tensor, device: str) -> Tensor:
    """To [-1, 1] at 64 × 64."""
    images = images.to(device, torch.float32).clamp(0, 1)
    if images.shape[-2:] != (_SIZE, _SIZE):
        images = F.interpolate(images, (_SIZE, _SIZE), mode="bilinear", antialias=True)
    return images * 2 - 1


class EmojiScore:
    """Cosine of a small CLIP's embeddings: about 0.9 for a crisp, whole, right animal, falling with damage."""

    def __init__(self, device: str = "cpu") -> None:
        from transformers import CLIPModel, CLIPTokenizer

        path = str(_ASSETS / "scorer")
        self._device = device
        self._tokenizer = CLIPTokenizer.from_pretrained(path, local_files_only=True)
        model = CLIPModel.from_pretrained(path, dtype=torch.float32, local_files_only=True)
        self._model = model.eval().requires_grad_(False).to(device)
        self._text: dict[str, Tensor] = {}

    def __call__(self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> Tensor:
        """Cosines, [N]."""
        with torch.no_grad():
            image = self._model.get_image_features(pixel_values=_pixels(images, self._device))
            text = torch.stack([self._encode(p) for p in prompts])
            return F.cosine_similarity(features(image).float(), text, dim=-1)

    def _encode(self, prompt: str) -> Tensor:
        if prompt not in self._text:
            tokens = self._tokenizer(
                prompt, padding="max_length", truncation=True, max_length=16, return_tensors="pt"
            ).input_ids
            self._text[prompt] = features(self._model.get_text_features(input_ids=tokens.to(self._device))).float()[0]
        return self._text[prompt]


class EmojiJudge:
    """1 where a convolutional classifier gives the prompt's animal more than half of its belief, else 0.

    It has another architecture, seed and loss than the reward, and no training ever asks it.
    """

    def __init__(self, device: str = "cpu") -> None:
        from transformers import ResNetForImageClassification

        self._device = device
        model = ResNetForImageClassification.from_pretrained(
            str(_ASSETS / "judge"), dtype=torch.float32, local_files_only=True
        )
        self._model = model.eval().requires_grad_(False).to(device)
        self._labels = {str(name): int(i) for i, name in self._model.config.id2label.items()}

    def __call__(self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> Tensor:
        """0 or 1, [N]; a prompt that names none of the 45 animals cannot be recognised and gives 0."""
        with torch.no_grad():
            belief = self._model(pixel_values=_pixels(images, self._device)).logits.softmax(-1)
        wanted = torch.tensor([self._label(p) for p in prompts], device=belief.device)
        named = wanted >= 0
        right = belief.gather(1, wanted.clamp(min=0)[:, None])[:, 0]
        return ((right > 0.5) & named).float()

    def _label(self, prompt: str) -> int:
        return next((self._labels[w] for w in prompt.lower().split() if w in self._labels), -1)
