"""The reward of the embedded model and its independent judge; tools/build_embedded.py trained both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sdpo.rewards.models.clip import features
from sdpo.system.loaded_weights import check_loaded, weight_files

_ASSETS = Path(__file__).parents[2] / "assets" / "emoji"
_SIZE = 64  # pixels


def _pixels(images: Tensor, device: str) -> Tensor:
    """Resize images [N, 3, H, W] in [0, 1] to [N, 3, 64, 64] in [-1, 1]."""
    images = images.to(device, torch.float32).clamp(0, 1)
    if images.shape[-2:] != (_SIZE, _SIZE):
        images = F.interpolate(images, (_SIZE, _SIZE), mode="bilinear", antialias=True)
    return images * 2 - 1


class EmojiScore:
    """Scores the cosine of a small CLIP's embeddings: about 0.9 for a crisp, whole, right animal, less with damage.

    Args:
        device: the device for the weights.

    Attributes:
        differentiable: whether the scores have a gradient at the images.

    Raises:
        UserError: if the weights did not load as they are in the package's file.
    """

    differentiable = True

    def __init__(self, device: str = "cpu") -> None:
        from transformers import CLIPModel, CLIPTokenizer

        path = _ASSETS / "scorer"
        self._device = device
        self._tokenizer = CLIPTokenizer.from_pretrained(str(path), local_files_only=True)
        model = CLIPModel.from_pretrained(str(path), dtype=torch.float32, local_files_only=True)
        check_loaded(model, weight_files(path), f"reward 'emoji_score': the model in {path}")
        self._model = model.eval().requires_grad_(False).to(device)
        self._text: dict[str, Tensor] = {}

    def __call__(self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> Tensor:
        """Score images against their prompts.

        Args:
            images: float [N, 3, H, W] in [0, 1].
            prompts: the N prompts of the images.
            metadata: ignored.

        Returns:
            Cosines, float32 [N].
        """
        image = self._model.get_image_features(pixel_values=_pixels(images, self._device))
        text = torch.stack([self._encode(p) for p in prompts])
        return F.cosine_similarity(features(image).float(), text, dim=-1)

    @torch.no_grad()
    def _encode(self, prompt: str) -> Tensor:
        if prompt not in self._text:
            tokens = self._tokenizer(
                prompt, padding="max_length", truncation=True, max_length=16, return_tensors="pt"
            ).input_ids
            self._text[prompt] = features(self._model.get_text_features(input_ids=tokens.to(self._device))).float()[0]
        return self._text[prompt]


class EmojiJudge:
    """Scores 1 where a convolutional classifier gives the prompt's animal a probability above 1/2, else 0.

    The classifier has another architecture, seed and loss than the reward, and is used in no training.

    Args:
        device: the device for the weights.

    Raises:
        UserError: if the weights did not load as they are in the package's file.
    """

    def __init__(self, device: str = "cpu") -> None:
        from transformers import ResNetForImageClassification

        path = _ASSETS / "judge"
        self._device = device
        model = ResNetForImageClassification.from_pretrained(str(path), dtype=torch.float32, local_files_only=True)
        check_loaded(model, weight_files(path), f"reward 'emoji_judge': the model in {path}")
        self._model = model.eval().requires_grad_(False).to(device)
        self._labels = {str(name): int(i) for i, name in self._model.config.id2label.items()}

    def __call__(self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> Tensor:
        """Recognise the animal of each prompt; a prompt that names none of the 45 animals scores 0.

        Args:
            images: float [N, 3, H, W] in [0, 1].
            prompts: the N prompts of the images.
            metadata: ignored.

        Returns:
            0 or 1, float32 [N].
        """
        with torch.no_grad():
            probability = self._model(pixel_values=_pixels(images, self._device)).logits.softmax(-1)
        wanted = torch.tensor([self._label(p) for p in prompts], device=probability.device)
        named = wanted >= 0
        right = probability.gather(1, wanted.clamp(min=0)[:, None])[:, 0]
        return ((right > 0.5) & named).float()

    def _label(self, prompt: str) -> int:
        return next((self._labels[w] for w in prompt.lower().split() if w in self._labels), -1)
