"""Human Preference Score v2 and v2.1 (Wu et al. 2023, arXiv 2306.09341): open_clip's ViT-H/14. About 0.2 … 0.35."""

from __future__ import annotations

import html
import warnings
from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor, nn

from sdpo.errors import UserError
from sdpo.rewards.models.clip import ClipReward, Mode, load_tokenizer
from sdpo.rewards.models.pixels import Resize
from sdpo.rewards.models.weights import build_with, locate, read_tensors

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
    """An open_clip state dict under the names of transformers' `CLIPModel`.

    Raises:
        UserError: if a key is not of that layout.
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
            raise UserError(f"hpsv2: unexpected key {key!r}: not a ViT of open_clip's layout")
    return converted


def _block(key: str, value: Tensor) -> dict[str, Tensor]:
    tower = "vision_model" if key.startswith("visual.") else "text_model"
    layer, _, rest = key.split("transformer.resblocks.", 1)[1].partition(".")
    prefix = f"{tower}.encoder.layers.{layer}."
    if rest.startswith("attn.in_proj_"):
        kind = rest.removeprefix("attn.in_proj_")
        parts = zip("qkv", value.chunk(3), strict=True)
        return {f"{prefix}self_attn.{name}_proj.{kind}": part.contiguous() for name, part in parts}
    stem, _, kind = rest.rpartition(".")
    if stem not in _IN_BLOCK:
        raise UserError(f"hpsv2: unexpected key {key!r}: not a ViT of open_clip's layout")
    return {f"{prefix}{_IN_BLOCK[stem]}.{kind}": value}


def build_model(state: Mapping[str, Tensor], config: Mapping[str, Any], where: str) -> nn.Module:
    """A `CLIPModel` with an open_clip checkpoint's weights, in float32.

    Args:
        state: open_clip's.
        config: keyword arguments of `CLIPConfig`.
        where: the file, for messages.

    Raises:
        UserError: if the weights are not that model's.
    """
    from transformers import CLIPConfig, CLIPModel

    return build_with(lambda: CLIPModel(CLIPConfig(**config)), from_open_clip(state), where)


def clean_text(prompt: str) -> str:
    """open_clip's cleaning: mend broken Unicode (with ftfy, if it is installed), then undo HTML escapes, twice."""
    try:
        import ftfy
    except ImportError:
        if not prompt.isascii():
            warnings.warn(
                "hpsv2: ftfy is not installed, so prompts with broken Unicode are scored as they are: "
                "pip install 'sdpo[hpsv2]'",
                stacklevel=2,
            )
    else:
        prompt = ftfy.fix_text(prompt)
    return html.unescape(html.unescape(prompt)).strip()


class HPSv2(ClipReward):
    """Cosine of image and prompt.

    Args:
        model: CLIP.
        tokenizer: its.
        mode: see `Mode`; `official` scales the long side and pads.
        resize: see `model_pixels`.
    """

    def __init__(self, model: nn.Module, tokenizer: Any, *, mode: Mode = "official", resize: Resize = "float") -> None:
        fit: Literal["pad", "hf"] = "pad" if mode == "official" else "hf"
        super().__init__(model, tokenizer, fit=fit, resize=resize, clean=clean_text)

    def __call__(self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> Tensor:
        """[N]."""
        return self.cosines(images, prompts)


def load(
    device: str = "cpu",
    *,
    path: str | None = None,
    mode: Mode = "official",
    resize: Resize = "float",
    version: Literal["hpsv2", "hpsv2.1"] = "hpsv2",
) -> HPSv2:
    """From the hub, or a folder with its files.

    Raises:
        UserError: see `locate`, `read_tensors`, `build_model`.
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
    """HPSv2.1; see `load`."""
    return load(device, version="hpsv2.1", **options)
