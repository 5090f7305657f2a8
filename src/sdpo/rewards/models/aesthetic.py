"""The LAION aesthetic predictor: a linear head on the image embedding of CLIP ViT-L/14; scores of about 1 … 10."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sdpo.rewards.models.clip import ClipReward, Mode, load_clip
from sdpo.rewards.models.frozen import read_tensors
from sdpo.rewards.models.heads import LinearHead, collapse
from sdpo.rewards.models.pixels import Resize
from sdpo.rewards.models.weights import locate


class Aesthetic(ClipReward):
    """Scores images alone, whatever their prompts.

    Args:
        model: a frozen `CLIPModel`.
        head: a linear head on the model's image embeddings [N, D].
        resize: `float` resizes differentiably; `pil` rounds as Pillow does, without a gradient.
    """

    def __init__(self, model: nn.Module, head: LinearHead, *, resize: Resize = "float") -> None:
        super().__init__(model, fit="hf", resize=resize)
        self.head = head

    def to(self, device: torch.device | str) -> Aesthetic:
        """Move the weights to a device."""
        self.head.to(device)
        super().to(device)
        return self

    def __call__(self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> Tensor:
        """Score images by their look.

        Args:
            images: float [N, 3, H, W] in [0, 1].
            prompts: ignored.
            metadata: ignored.

        Returns:
            Scores, float32 [N].
        """
        return self.head(self.image_embeddings(images))


def load(
    device: str = "cpu", *, path: str | None = None, mode: Mode = "official", resize: Resize = "float"
) -> Aesthetic:
    """Load the aesthetic predictor from a folder or the hub.

    Args:
        device: the device for the weights.
        path: a folder with the files; None uses `$SDPO_REWARDS` or the Hugging Face hub.
        mode: `official` or `sdpo`, which are the same here: the paper's code uses this model as its authors do.
        resize: `float` resizes differentiably; `pil` rounds as Pillow does, without a gradient.

    Raises:
        UserError: if a file is missing, cannot be downloaded, or does not hold the model's weights.
    """
    del mode
    files = locate("aesthetic", path)
    head = files["aesthetic-model.pth"]
    weight, bias = collapse(read_tensors(head), str(head))
    return Aesthetic(load_clip(files), LinearHead(weight, bias), resize=resize).to(device)
