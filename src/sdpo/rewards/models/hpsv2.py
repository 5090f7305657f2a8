"""Human Preference Score v2 and v2.1 (Wu et al. 2023, arXiv 2306.09341): open_clip's ViT-H/14; about 0.2 … 0.35."""

from __future__ import annotations

import functools
import html
from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor, nn

from sdpo.errors import UserError
from sdpo.rewards.models.clip import ClipReward, Mode, load_tokenizer
from sdpo.rewards.models.frozen import frozen_model, read_tensors
from sdpo.rewards.models.pixels import Resize
from sdpo.rewards.models.weights import locate
from sdpo.system.log import logger

# open_clip's ViT-H-14. Its GELU is exact; the transformers default for CLIP, quick_gelu, is another function.
VIT_H_14: dict[str, Any] = {
    "projection_dim": 1024,
    "vision_config": dict(
        hidden_size=1280, intermediate_size=5120, num_hidden_layers=32, num_attention_heads=16, image_size=224,
        patch_size=14, hidden_act="gelu", layer_norm_eps=1e-5,
    ),
    "text_config": dict(
        vocab_size=49408, hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16,
        max_position_embeddings=77, hidden_act="gelu", layer_norm_eps=1e-5, bos_token_id=49406, eos_token_id=49407,
        pad_token_id=0,
    ),
}  # fmt: skip

_RENAMED = {
    "logit_scale": "logit_scale",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
}
_TRANSPOSED = {"visual.proj": "visual_projection.weight", "text_projection": "text_projection.weight"}
_NORMS = {
    "ln_final": "text_model.final_layer_norm",
    "visual.ln_pre": "vision_model.pre_layrnorm",  # spelt so in transformers
    "visual.ln_post": "vision_model.post_layernorm",
}
_IN_BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}


def from_open_clip(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename an open_clip state dict to the names of transformers' `CLIPModel`.

    Raises:
        UserError: if a key is not in open_clip's layout.
    """
    converted: dict[str, Tensor] = {}
    for key, value in state.items():
        stem, _, kind = key.rpartition(".")
        if key in _RENAMED:
            converted[_RENAMED[key]] = value
        elif key in _TRANSPOSED:
            converted[_TRANSPOSED[key]] = value.T.contiguous()
        elif stem in _NORMS:
            converted[f"{_NORMS[stem]}.{kind}"] = value
        elif "transformer.resblocks." in key:
            converted |= _block(key, value)
        else:
            raise UserError(f"hpsv2: unexpected key {key!r}: not a ViT in open_clip's layout")
    return converted


def _block(key: str, value: Tensor) -> dict[str, Tensor]:
    """Rename a weight of a transformer block; the joint projection of queries, keys and values becomes three."""
    tower = "vision_model" if key.startswith("visual.") else "text_model"
    layer, _, rest = key.split("transformer.resblocks.", 1)[1].partition(".")
    prefix = f"{tower}.encoder.layers.{layer}."
    if rest.startswith("attn.in_proj_"):
        kind = rest.removeprefix("attn.in_proj_")
        parts = zip("qkv", value.chunk(3), strict=True)
        return {f"{prefix}self_attn.{name}_proj.{kind}": part.contiguous() for name, part in parts}
    stem, _, kind = rest.rpartition(".")
    if stem not in _IN_BLOCK:
        raise UserError(f"hpsv2: unexpected key {key!r}: not a ViT in open_clip's layout")
    return {f"{prefix}{_IN_BLOCK[stem]}.{kind}": value}


def build_model(state: Mapping[str, Tensor], config: Mapping[str, Any], where: str) -> nn.Module:
    """Build a frozen float32 `CLIPModel` with the weights of an open_clip checkpoint.

    Args:
        state: the state dict in open_clip's layout.
        config: keyword arguments of `CLIPConfig`.
        where: the file of the weights, for messages.

    Raises:
        UserError: if the weights are not exactly those of the model.
    """
    from transformers import CLIPConfig, CLIPModel

    return frozen_model(lambda: CLIPModel(CLIPConfig(**config)), from_open_clip(state), where)


def clean_text(prompt: str) -> str:
    """Clean a prompt as open_clip does: repair broken Unicode (if ftfy is installed), then undo HTML escapes, twice."""
    try:
        import ftfy
    except ImportError:
        if not prompt.isascii():
            _warn_of_missing_ftfy()
    else:
        prompt = ftfy.fix_text(prompt)
    return html.unescape(html.unescape(prompt)).strip()


@functools.cache
def _warn_of_missing_ftfy() -> None:
    """Warn, once, that prompts are not repaired."""
    logger.warning(
        "hpsv2: ftfy is not installed, so prompts with broken Unicode are scored as they are. Install it: "
        "pip install 'sdpo[hpsv2]'"
    )


class HPSv2(ClipReward):
    """Scores the cosine of image and prompt.

    Args:
        model: a frozen `CLIPModel`.
        tokenizer: OpenAI CLIP's tokenizer.
        mode: `official` scales an image's long side and pads, as the authors do; `sdpo` crops with the transformers
            CLIP processor, as the paper's code does.
        resize: `float` resizes differentiably; `pil` rounds as Pillow does, without a gradient.
    """

    def __init__(self, model: nn.Module, tokenizer: Any, *, mode: Mode = "official", resize: Resize = "float") -> None:
        fit: Literal["pad", "hf"] = "pad" if mode == "official" else "hf"
        super().__init__(model, tokenizer, fit=fit, resize=resize, clean=clean_text)

    def __call__(self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> Tensor:
        """Score images against their prompts.

        Args:
            images: float [N, 3, H, W] in [0, 1].
            prompts: the N prompts of the images.
            metadata: ignored.

        Returns:
            Scores, float32 [N].
        """
        return self.cosines(images, prompts)


def load(
    device: str = "cpu",
    *,
    path: str | None = None,
    mode: Mode = "official",
    resize: Resize = "float",
    version: Literal["hpsv2", "hpsv2.1"] = "hpsv2",
) -> HPSv2:
    """Load HPSv2 or HPSv2.1 from a folder or the hub.

    Args:
        device: the device for the weights.
        path: a folder with the files; None uses `$SDPO_REWARDS` or the Hugging Face hub.
        mode: `official` scales an image's long side and pads; `sdpo` crops with the transformers CLIP processor.
        resize: `float` resizes differentiably; `pil` rounds as Pillow does, without a gradient.
        version: the checkpoint, `hpsv2` or `hpsv2.1`.

    Raises:
        UserError: if a file is missing, cannot be downloaded, or does not hold the model's weights.
    """
    files = locate(version, path)
    checkpoint = next(file for name, file in files.items() if name.endswith(".pt"))
    contents = read_tensors(checkpoint)
    if not isinstance(contents.get("state_dict"), Mapping):
        raise UserError(f"{checkpoint} has no state_dict: it is not an HPSv2 checkpoint")
    model = build_model(contents["state_dict"], VIT_H_14, str(checkpoint))
    reward = HPSv2(model, load_tokenizer(files), mode=mode, resize=resize)
    reward.to(device)
    return reward


def load_v2_1(device: str = "cpu", **options: Any) -> HPSv2:
    """Load HPSv2.1 from a folder or the hub.

    Args:
        device: the device for the weights.
        options: the keyword arguments of `load`, without `version`.

    Raises:
        UserError: if a file is missing, cannot be downloaded, or does not hold the model's weights.
    """
    return load(device, version="hpsv2.1", **options)
