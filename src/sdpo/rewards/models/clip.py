"""CLIP as a reward: cosines of images and prompts, or a linear head on the image alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sdpo.rewards.models.pixels import Fit, Resize, model_pixels

Mode = Literal["official", "sdpo"]
"""`official` is each model's own preprocessing and scale; `sdpo` is that of the paper's code: the transformers CLIP
processor for every model, without the final scale of ImageReward and PickScore."""

_CACHED_PROMPTS = 4096


class ClipReward:
    """What the CLIP rewards share: pixels in, unit embeddings out.

    Args:
        model: a `CLIPModel`, frozen.
        tokenizer: a CLIP tokenizer, or None where no text is read.
        fit: see `model_pixels`.
        resize: see `model_pixels`.
        clean: applied to prompts first.
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
        config: Any = model.config
        self.size: int = config.vision_config.image_size
        self._text: dict[str, Tensor] = {}

    def to(self, device: torch.device | str) -> ClipReward:
        """Move the weights."""
        self.model.to(device)
        self._text = {prompt: row.to(device) for prompt, row in self._text.items()}
        return self

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return next(self.model.parameters()).device

    def image_embeddings(self, images: Tensor) -> Tensor:
        """Unit vectors [N, D] of images [N, 3, H, W] in [0, 1]; differentiable in `float` mode."""
        pixels = model_pixels(images.to(self.device), self.size, self.fit, self.resize)
        return F.normalize(self.embed_pixels(pixels), dim=-1)

    def embed_pixels(self, pixels: Tensor) -> Tensor:
        """Projected image features [N, D] of normalised pixels."""
        return features(self.model.get_image_features(pixel_values=pixels))

    def text_embeddings(self, prompts: Sequence[str]) -> Tensor:
        """Unit vectors [N, D]; each prompt is encoded once."""
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
        """Projected text features [N, D] of token ids [N, L]; the attention is causal, so padding needs no mask."""
        return features(self.model.get_text_features(input_ids=input_ids))

    def cosines(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """[N]."""
        return (self.image_embeddings(images) * self.text_embeddings(prompts)).sum(-1)


def features(output: Any) -> Tensor:
    """Projected features, bare or, since transformers 5, in an output object."""
    return output if isinstance(output, Tensor) else output.pooler_output


def load_tokenizer(files: dict[str, Path]) -> Any:
    """OpenAI CLIP's byte-pair tokenizer from its vocabulary and merges."""
    from transformers import CLIPTokenizer

    return CLIPTokenizer(vocab=str(files["vocab.json"]), merges=str(files["merges.txt"]))


def load_clip(files: dict[str, Path]) -> nn.Module:
    """A `CLIPModel` from `config.json` and `model.safetensors`, strictly.

    Raises:
        UserError: if the weights are not that model's.
    """
    from transformers import CLIPConfig, CLIPModel

    from sdpo.rewards.models.weights import build_with, read_tensors

    config = CLIPConfig.from_json_file(str(files["config.json"]))
    state = read_tensors(files["model.safetensors"])
    # Older files hold the position ids, which are not weights.
    state = {name: value for name, value in state.items() if not name.endswith("position_ids")}
    return build_with(lambda: CLIPModel(config), state, str(files["model.safetensors"]))
