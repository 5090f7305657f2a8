"""A LoRA's weights under the names that ComfyUI reads; diffusers reads the same files."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from diffusers.utils.state_dict_utils import convert_state_dict_to_kohya
from torch import Tensor

from sdpo.errors import UserError

_DOTTED = {"FluxPipeline": "transformer", "ZImagePipeline": "diffusion_model"}
# diffusers refuses a file with `alpha` entries for this class; both programs take a missing one for the rank.
_WITHOUT_ALPHA = {"StableDiffusion3Pipeline": "transformer"}
_FLUX2_BLOCKS = (
    (r"transformer_blocks\.(\d+)\.attn\.to_[qkv]", r"double_blocks_\1_img_attn_qkv"),
    (r"transformer_blocks\.(\d+)\.attn\.add_[qkv]_proj", r"double_blocks_\1_txt_attn_qkv"),
    (r"transformer_blocks\.(\d+)\.attn\.to_out\.0", r"double_blocks_\1_img_attn_proj"),
    (r"transformer_blocks\.(\d+)\.attn\.to_add_out", r"double_blocks_\1_txt_attn_proj"),
    (r"transformer_blocks\.(\d+)\.ff\.linear_in", r"double_blocks_\1_img_mlp_0"),
    (r"transformer_blocks\.(\d+)\.ff\.linear_out", r"double_blocks_\1_img_mlp_2"),
    (r"transformer_blocks\.(\d+)\.ff_context\.linear_in", r"double_blocks_\1_txt_mlp_0"),
    (r"transformer_blocks\.(\d+)\.ff_context\.linear_out", r"double_blocks_\1_txt_mlp_2"),
    (r"single_transformer_blocks\.(\d+)\.attn\.to_qkv_mlp_proj", r"single_blocks_\1_linear1"),
    (r"single_transformer_blocks\.(\d+)\.attn\.to_out", r"single_blocks_\1_linear2"),
)
_FUSED = ("to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj")


def comfyui_weights(pipeline: Any, component: str, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights by other names.

    Args:
        pipeline: with the LoRA on it, which knows its alphas.
        component: the pipeline's denoising network.
        weights: of the file that diffusers wrote, `<component>.<module>.lora_A.weight` and `lora_B`.

    Raises:
        UserError: if ComfyUI knows no LoRA of this class, or not of a module.
    """
    name = type(pipeline).__name__
    alphas = _alphas(getattr(pipeline, component))
    modules = {
        module: (weights[f"{component}.{module}.lora_A.weight"], weights[f"{component}.{module}.lora_B.weight"])
        for module in alphas
    }
    if component == "unet":
        found = convert_state_dict_to_kohya(dict(weights))
        return found | {f"lora_unet_{m.replace('.', '_')}.alpha": torch.tensor(a) for m, a in alphas.items()}
    if name in _DOTTED | _WITHOUT_ALPHA:
        return _dotted(name, modules, alphas)
    if name == "Flux2KleinPipeline":
        return _flux2(modules, alphas)
    raise UserError(
        f"ComfyUI reads no LoRA of a {name}: use --to diffusers or --to merged. It reads those of pipelines with a "
        f"UNet, {', '.join([*_DOTTED, *_WITHOUT_ALPHA])} and Flux2KleinPipeline"
    )


def _alphas(network: Any) -> dict[str, float]:
    """α of every module with a LoRA; what it adds is scaled by α / rank."""
    return {
        name: float(scale * module.r[adapter])
        for name, module in network.named_modules()
        if hasattr(module, "lora_A")
        for adapter, scale in module.scaling.items()
    }


Modules = Mapping[str, tuple[Tensor, Tensor]]


def _dotted(name: str, modules: Modules, alphas: Mapping[str, float]) -> dict[str, Tensor]:
    prefix = (_DOTTED | _WITHOUT_ALPHA)[name]
    found = {}
    for module, (down, up) in modules.items():
        if name in _WITHOUT_ALPHA:
            up = up * (alphas[module] / len(down))
        else:
            found[f"{prefix}.{module}.alpha"] = torch.tensor(alphas[module])
        found[f"{prefix}.{module}.lora_A.weight"] = down
        found[f"{prefix}.{module}.lora_B.weight"] = up
    return found


def _flux2(modules: Modules, alphas: Mapping[str, float]) -> dict[str, Tensor]:
    """The released model makes queries, keys and values in one product: their LoRAs become one, block by block."""
    groups: dict[str, dict[str, tuple[Tensor, Tensor]]] = {}
    for module, (down, up) in modules.items():
        for pattern, target in _FLUX2_BLOCKS:
            if match := re.fullmatch(pattern, module):
                part = module.rsplit(".", 1)[-1]
                groups.setdefault(match.expand(target), {})[part] = (down, up * (alphas[module] / len(down)))
                break
        else:
            raise UserError(f"--to comfyui: {module}, which lora.targets names, has no name of its own in ComfyUI")
    found = {}
    for target, parts in groups.items():
        order = [n for n in _FUSED if n in parts] or list(parts)
        if target.endswith("_qkv") and len(order) < 3:
            raise UserError(
                "--to comfyui: this class needs the LoRA on queries, keys and values alike (all or none of each "
                f"kind), lora.targets has {', '.join(order)} alone"
            )
        down = torch.cat([parts[n][0] for n in order])
        found[f"lora_unet_{target}.lora_down.weight"] = down
        found[f"lora_unet_{target}.lora_up.weight"] = torch.block_diag(*(parts[n][1] for n in order))
        found[f"lora_unet_{target}.alpha"] = torch.tensor(float(len(down)))
    return found
