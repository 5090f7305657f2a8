"""The descriptions of the rewards that come with the package, for `sdpo rewards`."""

from __future__ import annotations

from dataclasses import dataclass

from sdpo.rewards.models.weights import SOURCES


@dataclass(frozen=True)
class Description:
    """A line of `sdpo rewards`.

    Attributes:
        name: the reward's name in the configuration.
        range: the range of its scores.
        text: what the reward measures, and what it needs.
        reads_prompt: whether the score depends on the prompt.
        has_gradient: whether the score has a gradient at the image, which srg, draft and refl follow.
    """

    name: str
    range: str
    text: str
    reads_prompt: bool = True
    has_gradient: bool = True

    @property
    def licence(self) -> str:
        """The licences of the reward's weights, or of the code where there are no weights to download."""
        glyphs = "MIT, OFL-1.1" if self.name.startswith("emoji") else "MIT"
        return ", ".join(dict.fromkeys(s.licence for s in SOURCES.get(self.name, ()))) or glyphs

    @property
    def size(self) -> int:
        """The size of the weights to download, in bytes."""
        return 1_000_000 * sum(s.megabytes for s in SOURCES.get(self.name, ()))


DESCRIPTIONS = (
    Description("emoji_score", "-1 … 1", "cosine of image and prompt, for the embedded model (comes with the package)"),
    Description(
        "emoji_judge",
        "0 or 1",
        "whether the right animal is recognised; for evaluation, not for training",
        has_gradient=False,
    ),
    Description(
        "jpeg_compressibility",
        "< 0",
        "minus the size as JPEG, quality 95, in kB (Black et al. 2023)",
        reads_prompt=False,
        has_gradient=False,
    ),
    Description(
        "jpeg_incompressibility",
        "> 0",
        "the size as JPEG, quality 95, in kB (Black et al. 2023)",
        reads_prompt=False,
        has_gradient=False,
    ),
    Description("colorfulness", ">= 0", "M of Hasler & Süsstrunk 2003, for pixels of 0 … 255", reads_prompt=False),
    Description("aesthetic", "1 … 10", "LAION aesthetic predictor on CLIP ViT-L/14; images alone", reads_prompt=False),
    Description("imagereward", "-2 … 2", "ImageReward v1.0 (Xu et al. 2023)"),
    Description("hpsv2", "0.2 … 0.35", "Human Preference Score v2 (Wu et al. 2023)"),
    Description("hpsv2.1", "0.2 … 0.35", "Human Preference Score v2.1"),
    Description("pickscore", "18 … 24", "PickScore v1 (Kirstain et al. 2023)"),
    Description("clipscore", "0.3 … 0.9", "2.5 · cosine of CLIP ViT-L/14 (Hessel et al. 2021)"),
    Description("http", "the server's", "your server, JSON over HTTP; reward_options.http.url", False, False),
    Description(
        "vlm",
        "0 … 1",
        "a vision-language model behind an OpenAI-compatible API; reward_options.vlm.base_url, .model",
        has_gradient=False,
    ),
    Description("ray", "its own", "any reward in a pool of Ray actors; reward_options.ray.reward", False, False),
)
