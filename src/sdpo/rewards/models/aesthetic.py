"""LAION aesthetic predictor: a linear head on CLIP ViT-L/14's image embedding. About 1 … 10; reads no prompt."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sdpo.rewards.models.clip import ClipReward, Mode, load_clip
from sdpo.rewards.models.heads import LinearHead, collapse
from sdpo.rewards.models.pixels import Resize
from sdpo.rewards.models.weights import locate, read_tensors


class Aesthetic(ClipReward):
    """Score of an image alone.

    Args:
        model: CLIP.
        head: of its embedding's size.
        resize: see `model_pixels`.
    """

    def __init__(self, model: nn.Module, head: LinearHead, *, resize: Resize = "float") -> None:
        super().__init__(model, fit="hf", resize=resize)
        self.head = head

    def to(self, device: torch.device | str) -> Aesthetic:
        """Move the weights."""
        self.head.to(device)
        super().to(device)
        return self

    def __call__(self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> Tensor:
        """[N]."""
        return self.head(self.image_embeddings(images))


def load(
    device: str = "cpu", *, path: str | None = None, mode: Mode = "official", resize: Resize = "float"
) -> Aesthetic:
    """From the hub, or a folder with its files; both modes are the same but for `resize`.

    Raises:
        UserError: see `locate`, `read_tensors`.
    """
    del mode  # the paper's code reads this model as its authors do
    files = locate("aesthetic", path)
    head = files["aesthetic-model.pth"]
    weight, bias = collapse(read_tensors(head), str(head))
    return Aesthetic(load_clip(files), LinearHead(weight, bias), resize=resize).to(device)
