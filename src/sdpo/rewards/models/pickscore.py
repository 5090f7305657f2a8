"""PickScore v1 (Kirstain et al. 2023, arXiv 2305.01569): CLIP ViT-H/14 trained on people's choices; about 18 … 24."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from sdpo.rewards.models.clip import ClipReward, Mode, load_clip, load_tokenizer
from sdpo.rewards.models.pixels import Resize
from sdpo.rewards.models.weights import locate


class PickScore(ClipReward):
    """Scores exp(logit scale) · cosine of image and prompt.

    Args:
        model: a frozen `CLIPModel`.
        tokenizer: CLIP's tokenizer.
        mode: `official` multiplies the cosine by the model's exp(logit scale); `sdpo` returns the cosine alone.
        resize: `float` resizes differentiably; `pil` rounds as Pillow does, without a gradient.
    """

    def __init__(self, model: nn.Module, tokenizer: Any, *, mode: Mode = "official", resize: Resize = "float") -> None:
        super().__init__(model, tokenizer, fit="hf", resize=resize)
        self.mode = mode

    def __call__(self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> Tensor:
        """Score images against their prompts.

        Args:
            images: float [N, 3, H, W] in [0, 1].
            prompts: the N prompts of the images.
            metadata: ignored.

        Returns:
            Scores, float32 [N].
        """
        cosines = self.cosines(images, prompts)
        return self.model.logit_scale.exp() * cosines if self.mode == "official" else cosines


def load(
    device: str = "cpu", *, path: str | None = None, mode: Mode = "official", resize: Resize = "float"
) -> PickScore:
    """Load PickScore from a folder or the hub.

    Args:
        device: the device for the weights.
        path: a folder with the files; None uses `$SDPO_REWARDS` or the Hugging Face hub.
        mode: `official` multiplies the cosine by the model's exp(logit scale); `sdpo` returns the cosine alone.
        resize: `float` resizes differentiably; `pil` rounds as Pillow does, without a gradient.

    Raises:
        UserError: if a file is missing, cannot be downloaded, or does not hold the model's weights.
    """
    files = locate("pickscore", path)
    reward = PickScore(load_clip(files), load_tokenizer(files), mode=mode, resize=resize)
    reward.to(device)
    return reward
