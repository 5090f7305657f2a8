"""The base of the CLIP rewards: embeddings of images and prompts, and their cosines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sdpo.rewards.models.pixels import Fit, Resize, model_pixels

Mode = Literal["official", "sdpo"]
"""Preprocessing and scale. `official`: as each model's authors publish them. `sdpo`: as the paper's code has them, with
the transformers CLIP processor for every model, and without the final scale of ImageReward and PickScore."""

_CACHED_PROMPTS = 4096  # more distinct prompts than this empty the cache


class ClipReward:
    """A frozen CLIP model that embeds images and prompts as unit vectors.

    Args:
        model: a frozen `CLIPModel`.
        tokenizer: a CLIP tokenizer, or None for a reward that reads no prompt.
        fit: how images become squares: `clip`, `hf` or `pad`, which `model_pixels` explains.
        resize: `float` resizes differentiably; `pil` rounds as Pillow does, without a gradient.
        clean: a function that is applied to each prompt first.

    Attributes:
        differentiable: whether the scores have a gradient at the images.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any = None,
        *,
        fit: Fit = "hf",
        resize: Resize = "float",
        clean: Callable[[str], str] = str,
    ) -> None:
        self.model: Any = model
        self.tokenizer = tokenizer
        self.fit = fit
        self.resize = resize
        self.clean = clean
        self.differentiable = resize == "float"
        config: Any = model.config
        self.size: int = config.vision_config.image_size
        self._text: dict[str, Tensor] = {}

    def to(self, device: torch.device | str) -> ClipReward:
        """Move the weights to a device."""
        self.model.to(device)
        self._text = {prompt: row.to(device) for prompt, row in self._text.items()}
        return self

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return next(self.model.parameters()).device

    def image_embeddings(self, images: Tensor) -> Tensor:
        """Embed images [N, 3, H, W] in [0, 1] as unit vectors [N, D]; differentiable if `resize` is `float`."""
        pixels = model_pixels(images.to(self.device), self.size, self.fit, self.resize)
        return F.normalize(self.embed_pixels(pixels), dim=-1)

    def embed_pixels(self, pixels: Tensor) -> Tensor:
        """Compute the projected image features [N, D] of normalised pixels [N, 3, S, S]."""
        return features(self.model.get_image_features(pixel_values=pixels))

    def text_embeddings(self, prompts: Sequence[str]) -> Tensor:
        """Embed N prompts as unit vectors [N, D]; each distinct prompt is encoded once."""
        new = [p for p in dict.fromkeys(prompts) if p not in self._text]
        if len(self._text) + len(new) > _CACHED_PROMPTS:
            self._text, new = {}, list(dict.fromkeys(prompts))
        for start in range(0, len(new), 64):
            chunk = new[start : start + 64]
            length = self.model.config.text_config.max_position_embeddings
            tokens = self.tokenizer(
                [self.clean(p) for p in chunk],
                padding="max_length",
                truncation=True,
                max_length=length,
                return_tensors="pt",
            ).input_ids
            rows = F.normalize(self.embed_tokens(tokens.to(self.device)), dim=-1)
            self._text.update(zip(chunk, rows, strict=True))
        return torch.stack([self._text[p] for p in prompts])

    @torch.no_grad()
    def embed_tokens(self, input_ids: Tensor) -> Tensor:
        """Compute the projected text features [N, D] of token ids [N, L]; causal attention needs no padding mask."""
        return features(self.model.get_text_features(input_ids=input_ids))

    def cosines(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Compute the cosine of each image and its prompt.

        Args:
            images: float [N, 3, H, W] in [0, 1].
            prompts: the N prompts of the images.

        Returns:
            Cosines, float32 [N].
        """
        return (self.image_embeddings(images) * self.text_embeddings(prompts)).sum(-1)


def features(output: Any) -> Tensor:
    """The projected features of a CLIP output, which is a tensor or, since transformers 5, an object."""
    return output if isinstance(output, Tensor) else output.pooler_output


def load_tokenizer(files: dict[str, Path]) -> Any:
    """Load OpenAI CLIP's byte-pair tokenizer from `vocab.json` and `merges.txt`."""
    from transformers import CLIPTokenizer

    return CLIPTokenizer(vocab=str(files["vocab.json"]), merges=str(files["merges.txt"]))


def load_clip(files: dict[str, Path]) -> nn.Module:
    """Load a frozen `CLIPModel` from `config.json` and `model.safetensors`.

    Args:
        files: the paths of these files, by file name.

    Raises:
        UserError: if the weights are not exactly those of the model.
    """
    from transformers import CLIPConfig, CLIPModel

    from sdpo.rewards.models.frozen import frozen_model, read_tensors

    config = CLIPConfig.from_json_file(str(files["config.json"]))
    state = read_tensors(files["model.safetensors"])
    # Older files also hold the position ids, which are not weights.
    state = {name: value for name, value in state.items() if not name.endswith("position_ids")}
    return frozen_model(lambda: CLIPModel(config), state, str(files["model.safetensors"]))
