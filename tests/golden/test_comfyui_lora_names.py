"""ComfyUI knows every name that an export of a real-size network has, and adds what diffusers adds.

`comfyui_lora_names.txt` lists the names and says how they were derived. The networks have the configurations of the
published models, on the meta device: names and shapes without weights.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    Flux2Transformer2DModel,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
    ZImageTransformer2DModel,
)
from helpers.pipelines import PIPELINES
from peft import get_peft_model_state_dict
from torch import Tensor, nn

from sdpo.backbones import lora, wrap_pipeline
from sdpo.backbones.comfyui import comfyui_weights
from sdpo.backbones.load import family_of

NAMES = Path(__file__).with_name("comfyui_lora_names.txt")
ENDINGS = r"\.(alpha|lora_(?:down|up|A|B)\.weight)$"


def expand(pattern: str) -> Iterator[str]:
    """The names that a pattern stands for: `a{0..1}_{q,k}` → a0_q, a0_k, a1_q, a1_k."""
    parts = re.split(r"\{([^}]*)\}", pattern)
    choices = []
    for braces in parts[1::2]:
        first, dots, last = braces.partition("..")
        choices.append([str(i) for i in range(int(first), int(last) + 1)] if dots else braces.split(","))
    for chosen in itertools.product(*choices):
        yield "".join(text + choice for text, choice in itertools.zip_longest(parts[::2], chosen, fillvalue=""))


def golden(model: str) -> dict[str, tuple[int, ...]]:
    """The shape of each weight that ComfyUI adds a LoRA to, by the LoRA's name."""
    found: dict[str, tuple[int, ...]] = {}
    lines = NAMES.read_text(encoding="utf-8").split(f"[{model}]\n")[1].split("\n[")[0].splitlines()
    for line in filter(None, lines):
        pattern, _, shape = line.partition(" ")
        for name in expand(pattern):
            assert name not in found, name
            found[name] = tuple(map(int, shape.split("x")))
    return found


def unet(**config: Any) -> UNet2DConditionModel:
    return UNet2DConditionModel(sample_size=64, layers_per_block=2, **config)


def sd3(layers: int, dual: int) -> SD3Transformer2DModel:
    return SD3Transformer2DModel(
        sample_size=128,
        num_layers=layers,
        num_attention_heads=layers,
        attention_head_dim=64,
        caption_projection_dim=64 * layers,
        joint_attention_dim=4096,
        pooled_projection_dim=2048,
        in_channels=16,
        out_channels=16,
        pos_embed_max_size=8,
        qk_norm="rms_norm",
        dual_attention_layers=tuple(range(dual)),
    )


def flux2(layers: int, single: int, heads: int) -> Flux2Transformer2DModel:
    return Flux2Transformer2DModel(
        in_channels=128,
        num_layers=layers,
        num_single_layers=single,
        num_attention_heads=heads,
        attention_head_dim=128,
        joint_attention_dim=320 * heads,
        guidance_embeds=False,
    )


SDXL = dict(
    block_out_channels=(320, 640, 1280),
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    transformer_layers_per_block=(1, 2, 10),
    attention_head_dim=(5, 10, 20),
    cross_attention_dim=2048,
    use_linear_projection=True,
    addition_embed_type="text_time",
    addition_time_embed_dim=256,
    projection_class_embeddings_input_dim=2816,
)
ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
JOINT = [*ATTENTION, "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"]
UNET = [*ATTENTION, "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out", "conv1", "conv2", "conv_shortcut", "conv",
        "conv_in", "conv_out", "time_emb_proj", "linear_1", "linear_2"]  # fmt: skip
SD3 = [*JOINT, "net.0.proj", "net.2"]
FLUX = [*SD3, "norm1.linear", "norm1_context.linear", "norm.linear", "proj_mlp", "proj_out", "x_embedder",
        "context_embedder", "linear_1", "linear_2"]  # fmt: skip
Z_IMAGE = [*ATTENTION, "w1", "w2", "w3", "adaLN_modulation.0"]
FLUX2 = [*JOINT, "linear_in", "linear_out", "to_qkv_mlp_proj", "attn.to_out"]

MODELS: dict[str, tuple[str, Callable[[], nn.Module], list[str]]] = {
    "SD 1.5": ("StableDiffusionPipeline", lambda: unet(cross_attention_dim=768, attention_head_dim=8), UNET),
    "LCM": (
        "LatentConsistencyModelPipeline",
        lambda: unet(cross_attention_dim=768, attention_head_dim=8, time_cond_proj_dim=256),
        UNET,
    ),
    "SD 2.1": (
        "StableDiffusionPipeline",
        lambda: unet(cross_attention_dim=1024, attention_head_dim=(5, 10, 20, 20), use_linear_projection=True),
        UNET,
    ),
    "SDXL": ("StableDiffusionXLPipeline", lambda: unet(**SDXL), UNET),
    "FLUX.1": ("FluxPipeline", lambda: FluxTransformer2DModel(guidance_embeds=False), FLUX),
    "SD 3.5 large": ("StableDiffusion3Pipeline", lambda: sd3(38, 0), SD3),
    "SD 3.5 medium": ("StableDiffusion3Pipeline", lambda: sd3(24, 13), SD3),
    "Z-Image": ("ZImagePipeline", lambda: ZImageTransformer2DModel(), Z_IMAGE),
    "FLUX.2-klein 4B": ("Flux2KleinPipeline", lambda: flux2(5, 20, 24), FLUX2),
    "FLUX.2-klein 9B": ("Flux2KleinPipeline", lambda: flux2(8, 24, 32), FLUX2),
}
"""By model: the pipeline class, the network, and the kinds of layers that the list has."""

SECTIONS = {"LCM": "SD 1.5"}
"""The section of the list, where it is not the model's name; ComfyUI loads a latent consistency model as SD 1.5."""


def layers_of(network: nn.Module, kinds: list[str]) -> list[str]:
    """The names of the layers of these kinds."""
    named = network.named_modules()
    return [
        n for n, m in named if isinstance(m, nn.Linear | nn.Conv2d) and f".{n}".endswith(tuple(f".{k}" for k in kinds))
    ]


def export(network: nn.Module, name: str) -> dict[str, Tensor]:
    """The entries of ComfyUI's file for a network with a LoRA."""
    component = family_of(name).component
    weights = {f"{component}.{key}": value for key, value in get_peft_model_state_dict(network).items()}
    return comfyui_weights(type(name, (), {component: network})(), component, weights)


def layers(entries: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """α, the matrix down and the matrix up of each layer, by the layer's name."""
    found: dict[str, dict[str, Tensor]] = {}
    kinds = {"lora_A.weight": "down", "lora_down.weight": "down", "lora_B.weight": "up", "lora_up.weight": "up"}
    for key, value in entries.items():
        name, ending = re.split(ENDINGS, key)[:2]
        found.setdefault(name, {})[kinds.get(ending, ending)] = value
    return found


@pytest.mark.parametrize("model", MODELS)
def test_every_name_is_in_comfyuis_list(model: str) -> None:
    name, make, kinds = MODELS[model]
    assert set(family_of(name).lora_targets) <= set(kinds)
    with torch.device("meta"):
        network = make()
        lora.add(network, 1, 1.0, layers_of(network, kinds))
    expected, found = golden(SECTIONS.get(model, model)), layers(export(network, name))
    assert sorted(found.keys() - expected.keys()) == [] == sorted(expected.keys() - found.keys())
    for key, parts in found.items():
        rows, columns = parts["up"].shape[0], parts["down"].shape[1:]
        assert (rows, *columns) == expected[key], key
        assert parts["up"].shape[1] == parts["down"].shape[0]


def delta(parts: dict[str, Tensor]) -> Tensor:
    """What ComfyUI adds to the weight: α / r · up · down, where a missing α stands for r."""
    rank = parts["down"].shape[0]
    scale = parts["alpha"].item() / rank if "alpha" in parts else 1.0
    return scale * parts["up"].flatten(1) @ parts["down"].flatten(1)


def deltas_of(network: nn.Module, name: str) -> dict[str, Tensor]:
    """(α / r) · B · A of each layer under ComfyUI's name, computed from the LoRA's own matrices."""
    own = {
        module_name: 4 / 2 * module.lora_B["default"].weight.flatten(1) @ module.lora_A["default"].weight.flatten(1)
        for module_name, module in network.named_modules()
        if hasattr(module, "lora_A")
    }
    if name != "Flux2KleinPipeline":
        prefix = {"ZImagePipeline": "diffusion_model."}.get(name, "transformer.")
        unet = family_of(name).component == "unet"
        return {f"lora_unet_{key.replace('.', '_')}" if unet else prefix + key: value for key, value in own.items()}
    joined = {}
    block, single = "transformer_blocks.0.attn.", "single_transformer_blocks.0.attn."
    for side, projections in {
        "img": ("to_q", "to_k", "to_v"),
        "txt": ("add_q_proj", "add_k_proj", "add_v_proj"),
    }.items():
        joined[f"lora_unet_double_blocks_0_{side}_attn_qkv"] = torch.cat([own[block + part] for part in projections])
    joined["lora_unet_double_blocks_0_img_attn_proj"] = own[block + "to_out.0"]
    joined["lora_unet_double_blocks_0_txt_attn_proj"] = own[block + "to_add_out"]
    joined["lora_unet_single_blocks_0_linear1"] = own[single + "to_qkv_mlp_proj"]
    return joined


@pytest.mark.parametrize("name", [name for name in PIPELINES if name != "SanaSprintPipeline"])
@torch.no_grad()
def test_comfyui_adds_what_the_lora_adds(name: str) -> None:
    torch.manual_seed(0)
    backbone = wrap_pipeline(PIPELINES[name](), size=(32, 32))
    backbone.train_lora(2, 4.0, None)
    for parameter in backbone.trainable_parameters().values():
        parameter.normal_()
    network = backbone.network_module
    expected = deltas_of(network, name)
    found = {key: delta(parts) for key, parts in layers(export(network, name)).items()}
    assert found.keys() == expected.keys()
    for key in expected:
        torch.testing.assert_close(found[key], expected[key], rtol=1e-5, atol=1e-5)


def test_patterns_expand() -> None:
    assert list(expand("a{0..1}_{q,k}.b")) == ["a0_q.b", "a0_k.b", "a1_q.b", "a1_k.b"]
    assert list(expand("plain")) == ["plain"]
