"""CLIPScore (Hessel et al. 2021, arXiv 2104.08718) with CLIP ViT-L/14: 2.5 · cosine; about 0.3 … 0.9.

The paper cuts negative cosines off at 0; here they stay, so that bad images still differ and keep a gradient.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from sdpo.rewards.models.clip import ClipReward, Mode, load_clip, load_tokenizer
from sdpo.rewards.models.pixels import Resize
from sdpo.rewards.models.weights import locate


class ClipScore(ClipReward):
    """2.5 · cosine."""

    def __call__(self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> Tensor:
        """[N]."""
        return 2.5 * self.cosines(images, prompts)


def load(
    device: str = "cpu", *, path: str | None = None, mode: Mode = "official", resize: Resize = "float"
) -> ClipScore:
    """From the hub, or a folder with its files; the paper's code has no CLIPScore, so both modes are the same.

    Raises:
        UserError: see `locate`, `load_clip`.
    """
    del mode
    files = locate("clipscore", path)
    reward = ClipScore(load_clip(files), load_tokenizer(files), resize=resize)
    reward.to(device)
    return reward
