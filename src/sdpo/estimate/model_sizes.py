"""How large a model is, known without loading it: from a local directory's files, or a table of published models."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sdpo.backbones import ModelFacts, check_path, family_of, pipeline_index
from sdpo.config.schema import Config
from sdpo.errors import UserError


@dataclass(frozen=True)
class ModelSize:
    """Numbers of parameters and of latents, and what a sample's gradient keeps.

    Attributes:
        network: parameters of the denoising network.
        linear: of them in linear layers, which alone are quantised.
        lora: Σ (inputs + outputs) over the layers with a LoRA: a LoRA of rank r has r times as many parameters.
        text: parameters of all text encoders.
        decoder: parameters of the VAE.
        latent: C, and pixels a side of one latent.
        size: height and width in pixels by default.
        kept: bytes in half precision that the backward pass of one sample of 64 × 64 latents keeps (of 32 × 32 for a
            decoder of 32 pixels a latent).
        checkpointed: the same under gradient checkpointing: the blocks' inputs, and one block that is recomputed.
        scheduler: its class.
        channels: of the decoder at full resolution.
        embeds_guidance: whether guidance needs no second evaluation.
        upcasts: whether the decoder runs in float32 where the model is in float16.
    """

    network: int
    linear: int
    lora: int
    text: int
    decoder: int
    latent: tuple[int, int]
    size: tuple[int, int]
    kept: float
    checkpointed: float
    scheduler: str = "FlowMatchEulerDiscreteScheduler"
    channels: int = 256
    embeds_guidance: bool = False
    upcasts: bool = False


# Counted on the architectures that the hub's config.json files describe, without weights; `kept` is what autograd saves
# there for a LoRA's backward pass with fused attention.
_SD_TURBO = ModelSize(
    865_910_724,
    301_219_840,
    207_488,
    340_387_840,
    83_653_863,
    (4, 8),
    (512, 512),
    0.66e9,
    0.24e9,
    "EulerDiscreteScheduler",
)
_LCM = ModelSize(
    859_602_884,
    270_131_200,
    199_296,
    123_060_480,
    83_653_863,
    (4, 8),
    (768, 768),
    0.71e9,
    0.29e9,
    "LCMScheduler",
    embeds_guidance=True,
)
_SDXL = ModelSize(
    2_567_463_684,
    2_232_647_680,
    1_451_520,
    817_720_320,
    83_653_863,
    (4, 8),
    (512, 512),
    1.21e9,
    0.36e9,
    "EulerAncestralDiscreteScheduler",
    upcasts=True,
)
_SD35 = ModelSize(
    8_056_627_520, 8_053_694_464, 1_473_792, 5_580_031_000, 83_821_011, (16, 8), (1024, 1024), 4.35e9, 0.37e9
)
_FLUX = ModelSize(
    11_891_178_560, 11_888_099_328, 1_634_304, 4_885_371_136, 83_821_011, (16, 8), (1024, 1024), 6.45e9, 0.60e9
)
_Z_IMAGE = ModelSize(
    6_154_908_736, 6_153_863_168, 1_044_480, 4_022_468_096, 83_821_011, (16, 8), (1024, 1024), 8.29e9, 0.52e9
)
_SANA = ModelSize(
    1_610_237_472,
    854_353_920,
    716_800,
    2_614_341_888,
    312_250_275,
    (32, 32),
    (1024, 1024),
    4.24e9,
    0.31e9,
    "SCMScheduler",
    embeds_guidance=True,
)
PUBLISHED = {
    "stabilityai/sd-turbo": _SD_TURBO,
    "stabilityai/sdxl-turbo": _SDXL,
    "SimianLuo/LCM_Dreamshaper_v7": _LCM,
    "stabilityai/stable-diffusion-3.5-large-turbo": _SD35,
    "black-forest-labs/FLUX.1-schnell": _FLUX,
    "Tongyi-MAI/Z-Image-Turbo": _Z_IMAGE,
    "Efficient-Large-Model/Sana_Sprint_1.6B_1024px_diffusers": _SANA,
}
_LIKE = {  # whose activations those of a local directory's class are reckoned from
    "StableDiffusionPipeline": _SD_TURBO,
    "LatentConsistencyModelPipeline": _LCM,
    "StableDiffusionXLPipeline": _SDXL,
    "StableDiffusion3Pipeline": _SD35,
    "FluxPipeline": _FLUX,
    "Flux2KleinPipeline": _FLUX,
    "ZImagePipeline": _Z_IMAGE,
    "SanaSprintPipeline": _SANA,
}


def peek(path: str) -> ModelFacts:
    """What is known of a model's scheduler and guidance before it is loaded.

    Raises:
        UserError: if a local file is damaged.
    """
    local = check_path(path)
    if local is not None:
        return ModelFacts.read(local, pipeline_index(local))
    known = PUBLISHED.get(path)
    return ModelFacts(known.scheduler, known.embeds_guidance) if known is not None else ModelFacts()


def model_size(config: Config) -> ModelSize | None:
    """Of the model of a run; None where it is neither in a local directory nor in the table.

    Raises:
        UserError: if a local file is damaged.
    """
    local = check_path(config.model.path)
    found = PUBLISHED.get(config.model.path) if local is None else _read(local, config)
    if found is None:
        return None
    height, width = config.model.height or found.size[0], config.model.width or found.size[1]
    return replace(found, size=(height, width))


def latent_shape(size: ModelSize) -> tuple[int, int, int]:
    """C, H and W of a sample's latents."""
    channels, scale = size.latent
    return channels, size.size[0] // scale, size.size[1] // scale


def _read(directory: Path, config: Config) -> ModelSize:
    """Counts of a pipeline's directory; activations in proportion to the table's model of its class, by width."""
    index = pipeline_index(directory)
    name, known = index["_class_name"], ModelFacts.read(directory, index)
    family = family_of(name)
    try:
        network = _shapes(directory / family.component)
        vae = json.loads((directory / "vae" / "config.json").read_text(encoding="utf-8"))
        settings = json.loads((directory / family.component / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"model.path: {directory} cannot be read: {error!r}") from error
    text = sum(_count(_shapes(directory / part)) for part in family.text_encoders)
    blocks = vae.get("block_out_channels") or vae.get("decoder_block_out_channels")
    scale = 2 ** (len(blocks) - 1)
    side = settings.get("sample_size")
    sides = (1024 // scale, 1024 // scale) if side is None else (side, side) if isinstance(side, int) else tuple(side)
    like, parameters = _LIKE[name], _count(network)
    share = math.sqrt(parameters / like.network)
    return ModelSize(
        network=parameters,
        linear=sum(math.prod(s) for n, s in network.items() if len(s) == 2 and "embed" not in n),
        lora=_lora(network, (config.lora and config.lora.targets) or family.lora_targets),
        text=text,
        decoder=_count(_shapes(directory / "vae")),
        latent=(int(vae["latent_channels"]), scale),
        size=(sides[0] * scale, sides[1] * scale),
        kept=like.kept * share,
        checkpointed=like.checkpointed * share,
        channels=2 * min(blocks),
        scheduler=known.scheduler,
        embeds_guidance=known.embeds_guidance,
        upcasts=bool(vae.get("force_upcast")) and config.model.dtype == "float16",
    )


def _lora(shapes: Mapping[str, Sequence[int]], targets: Sequence[str]) -> int:
    """Σ (inputs + outputs) over the weights of modules whose names end in a target."""
    total = 0
    for name, shape in shapes.items():
        module, _, kind = name.rpartition(".")
        if kind == "weight" and len(shape) >= 2 and any(module == t or module.endswith("." + t) for t in targets):
            total += shape[0] + math.prod(shape[1:])
    return total


def _shapes(folder: Path) -> dict[str, list[int]]:
    """The shape of every tensor in a folder's safetensors files, from their headers alone."""
    found: dict[str, list[int]] = {}
    for path in sorted(folder.glob("*.safetensors")) if folder.is_dir() else []:
        with path.open("rb") as file:
            header: dict[str, Any] = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        found |= {name: entry["shape"] for name, entry in header.items() if name != "__metadata__"}
    return found


def _count(shapes: Mapping[str, Sequence[int]]) -> int:
    return sum(math.prod(shape) for shape in shapes.values())
