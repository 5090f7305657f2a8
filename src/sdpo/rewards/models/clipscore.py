"""CLIPScore (Hessel et al. 2021, arXiv 2104.08718) with CLIP ViT-L/14: 2.5 · cosine; about 0.3 … 0.9.

The paper replaces negative cosines by 0. They stay negative here, so that bad images differ and have a gradient.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from sdpo.rewards.models.clip import ClipReward, Mode, load_clip, load_tokenizer
from sdpo.rewards.models.pixels import Resize
from sdpo.rewards.models.weights import locate


class ClipScore(ClipReward):
    """Scores 2.5 · cosine of image and prompt."""

    def __call__(self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> Tensor:
        """Score images against their prompts.

        Args:
            images: float [N, 3, H, W] in [0, 1].
            prompts: the N prompts of the images.
            metadata: ignored.

        Returns:
            Scores, float32 [N].
        """
        return 2.5 * self.cosines(images, prompts)


def load(
    device: str = "cpu", *, path: str | None = None, mode: Mode = "official", resize: Resize = "float"
) -> ClipScore:
    """Load CLIPScore from a folder or the hub.

    Args:
        device: the device for the weights.
        path: a folder with the files; None uses `$SDPO_REWARDS` or the Hugging Face hub.
        mode: `official` or `sdpo`, which are the same here: the paper's code has no CLIPScore.
        resize: `float` resizes differentiably; `pil` rounds as Pillow does, without a gradient.

    Raises:
        UserError: if a file is missing, cannot be downloaded, or does not hold the model's weights.
    """
    del mode
    files = locate("clipscore", path)
    reward = ClipScore(load_clip(files), load_tokenizer(files), resize=resize)
    reward.to(device)
    return reward
