"""PickScore v1 (Kirstain et al. 2023, arXiv 2305.01569): CLIP ViT-H/14 tuned on people's choices; about 18 … 24."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from sdpo.rewards.models.clip import ClipReward, Mode, load_clip, load_tokenizer
from sdpo.rewards.models.pixels import Resize
from sdpo.rewards.models.weights import locate


class PickScore(ClipReward):
    """exp(logit scale) · cosine; in mode `sdpo` the cosine alone.

    Args:
        model: CLIP.
        tokenizer: its.
        mode: see `Mode`.
        resize: see `model_pixels`.
    """

    def __init__(self, model: nn.Module, tokenizer: Any, *, mode: Mode = "official", resize: Resize = "float") -> None:
        super().__init__(model, tokenizer, fit="hf", resize=resize)
        self.mode = mode

    def __call__(self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> Tensor:
        """[N]."""
        cosines = self.cosines(images, prompts)
        return cosines if self.mode == "sdpo" else self.model.logit_scale.exp() * cosines


def load(
    device: str = "cpu", *, path: str | None = None, mode: Mode = "official", resize: Resize = "float"
) -> PickScore:
    """From the hub, or a folder with its files.

    Raises:
        UserError: see `locate`, `load_clip`.
    """
    files = locate("pickscore", path)
    reward = PickScore(load_clip(files), load_tokenizer(files), mode=mode, resize=resize)
    reward.to(device)
    return reward
