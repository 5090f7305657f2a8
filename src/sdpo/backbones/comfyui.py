"""Conversion of a LoRA's weights to the names that ComfyUI reads; diffusers reads the converted files too."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from diffusers.utils.state_dict_utils import convert_state_dict_to_kohya
from torch import Tensor

from sdpo.errors import UserError

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


Modules = Mapping[str, tuple[Tensor, Tensor]]
"""The LoRA's two matrices, down [rank, inputs] and up [outputs, rank], by module name."""


def comfyui_weights(pipeline: Any, component: str, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert a LoRA's weights to the names that ComfyUI reads.

    Args:
        pipeline: the diffusers pipeline with the LoRA, whose layers hold the α of each module.
        component: name of the pipeline's denoising network.
        weights: weights of the file that diffusers wrote, named `<component>.<module>.lora_A.weight` and `lora_B`.

    Raises:
        UserError: if ComfyUI reads no LoRA of this pipeline class, or has no name for one of the modules.
    """
    alphas = _alphas(getattr(pipeline, component))
    if component == "unet":
        found = convert_state_dict_to_kohya(dict(weights))
        return found | {f"lora_unet_{m.replace('.', '_')}.alpha": torch.tensor(a) for m, a in alphas.items()}
    name = type(pipeline).__name__
    if name not in _TRANSFORMERS:
        raise UserError(
            f"ComfyUI reads no LoRA of a {name}: use --to diffusers or --to merged. It reads LoRAs of pipelines with a "
            f"UNet and of {', '.join(_TRANSFORMERS)}"
        )
    modules = {
        module: (weights[f"{component}.{module}.lora_A.weight"], weights[f"{component}.{module}.lora_B.weight"])
        for module in alphas
    }
    return _TRANSFORMERS[name](modules, alphas)


def _alphas(network: Any) -> dict[str, float]:
    """The α of each module that has a LoRA, by module name; the LoRA's product is scaled by α / rank."""
    return {
        name: float(scale * module.r[adapter])
        for name, module in network.named_modules()
        if hasattr(module, "lora_A")
        for adapter, scale in module.scaling.items()
    }


def _dotted(prefix: str, modules: Modules, alphas: Mapping[str, float]) -> dict[str, Tensor]:
    """Keep the modules' dotted names, behind a prefix, with an `alpha` entry for each module."""
    found = {}
    for module, (down, up) in modules.items():
        found[f"{prefix}.{module}.alpha"] = torch.tensor(alphas[module])
        found[f"{prefix}.{module}.lora_A.weight"] = down
        found[f"{prefix}.{module}.lora_B.weight"] = up
    return found


def _dotted_without_alpha(prefix: str, modules: Modules, alphas: Mapping[str, float]) -> dict[str, Tensor]:
    """Keep the modules' dotted names, behind a prefix, with α / rank multiplied into the up matrices."""
    found = {}
    for module, (down, up) in modules.items():
        found[f"{prefix}.{module}.lora_A.weight"] = down
        found[f"{prefix}.{module}.lora_B.weight"] = up * (alphas[module] / len(down))
    return found


def _flux2(modules: Modules, alphas: Mapping[str, float]) -> dict[str, Tensor]:
    """Join the LoRAs of queries, keys and values in each block, which the released model computes in one product."""
    groups: dict[str, dict[str, tuple[Tensor, Tensor]]] = {}
    for module, (down, up) in modules.items():
        for pattern, target in _FLUX2_BLOCKS:
            if match := re.fullmatch(pattern, module):
                part = module.rsplit(".", 1)[-1]
                groups.setdefault(match.expand(target), {})[part] = (down, up * (alphas[module] / len(down)))
                break
        else:
            raise UserError(f"--to comfyui: ComfyUI has no name for {module} of lora.targets: use --to diffusers")
    found = {}
    for target, parts in groups.items():
        order = [n for n in _FUSED if n in parts] or list(parts)
        if target.endswith("_qkv") and len(order) < 3:
            raise UserError(
                "--to comfyui: this pipeline class needs the LoRA on queries, keys and values together, but "
                f"lora.targets names only {', '.join(order)}: use --to diffusers"
            )
        down = torch.cat([parts[n][0] for n in order])
        found[f"lora_unet_{target}.lora_down.weight"] = down
        found[f"lora_unet_{target}.lora_up.weight"] = torch.block_diag(*(parts[n][1] for n in order))
        found[f"lora_unet_{target}.alpha"] = torch.tensor(float(len(down)))
    return found


_TRANSFORMERS: dict[str, Callable[[Modules, Mapping[str, float]], dict[str, Tensor]]] = {
    "FluxPipeline": partial(_dotted, "transformer"),
    "ZImagePipeline": partial(_dotted, "diffusion_model"),
    # diffusers rejects `alpha` entries for this class; without them both programs take α = rank.
    "StableDiffusion3Pipeline": partial(_dotted_without_alpha, "transformer"),
    "Flux2KleinPipeline": _flux2,
}
"""The conversion for each pipeline class with a transformer."""
