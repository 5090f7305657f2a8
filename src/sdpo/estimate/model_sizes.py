"""The size of a run's model, known without loading it: from a local directory's files, or for a published model."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sdpo.backbones import ModelFacts, check_path, family_of, pipeline_index
from sdpo.config import Config
from sdpo.errors import UserError
from sdpo.estimate.published_models import PUBLISHED, SIMILAR, ModelSize


def model_facts(path: str) -> ModelFacts:
    """Find the facts about a model's scheduler and guidance that determine the cost of a run.

    Args:
        path: `model.path` of a configuration.

    Returns:
        The facts; those of an unknown model where neither a local directory nor a published model has this path.

    Raises:
        UserError: if a local file is damaged.
    """
    local = check_path(path)
    if local is not None:
        return ModelFacts.read(local, pipeline_index(local))
    known = PUBLISHED.get(path)
    return ModelFacts(known.scheduler, known.embeds_guidance) if known is not None else ModelFacts()


def model_size(config: Config) -> ModelSize | None:
    """Find the size of a run's model, at the image size of the configuration.

    Args:
        config: the configuration of a run.

    Returns:
        The size; None where neither a local directory nor a published model has the path `model.path`.

    Raises:
        UserError: if a local file is damaged.
    """
    local = check_path(config.model.path)
    found = PUBLISHED.get(config.model.path) if local is None else _read(local, config)
    if found is None:
        return None
    height, width = config.model.height or found.image_size[0], config.model.width or found.image_size[1]
    return replace(found, image_size=(height, width))


def latent_shape(size: ModelSize) -> tuple[int, int, int]:
    """The shape (C, H, W) of the latents of one sample."""
    height, width = size.image_size
    return size.latent_channels, height // size.latent_scale, width // size.latent_scale


def _read(directory: Path, config: Config) -> ModelSize:
    """Count the parameters of a pipeline's directory; scale the activations of the published model of its class."""
    index = pipeline_index(directory)
    name, facts = index["_class_name"], ModelFacts.read(directory, index)
    family, similar = family_of(name), SIMILAR[name]
    try:
        network = _shapes(directory / family.component)
        vae = _read_config(directory / "vae")
        settings = _read_config(directory / family.component)
        blocks: list[int] = vae.get("block_out_channels") or vae["decoder_block_out_channels"]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"model.path: {directory} cannot be read: {error!r}") from error
    scale, parameters = 2 ** (len(blocks) - 1), _count(network)
    growth = math.sqrt(parameters / similar.network)
    return ModelSize(
        network=parameters,
        linear=sum(math.prod(s) for n, s in network.items() if len(s) == 2 and "embed" not in n),
        lora_per_rank=_lora_per_rank(network, (config.lora and config.lora.targets) or family.lora_targets),
        text_encoders=sum(_count(_shapes(directory / part)) for part in family.text_encoders),
        vae=_count(_shapes(directory / "vae")),
        latent_channels=int(vae["latent_channels"]),
        latent_scale=scale,
        image_size=_image_size(settings.get("sample_size"), scale),
        activations=similar.activations * growth,
        checkpointed_activations=similar.checkpointed_activations * growth,
        decoder_channels=2 * min(blocks),
        scheduler=facts.scheduler,
        embeds_guidance=facts.embeds_guidance,
        upcasts=bool(vae.get("force_upcast")) and config.model.dtype == "float16",
    )


def _read_config(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return found


def _image_size(latents: int | Sequence[int] | None, scale: int) -> tuple[int, int]:
    """Default height and width in pixels, from the network's `sample_size`; transformers without one draw 1024²."""
    if latents is None:
        latents = 1024 // scale
    height, width = (latents, latents) if isinstance(latents, int) else latents
    return height * scale, width * scale


def _lora_per_rank(shapes: Mapping[str, Sequence[int]], targets: Sequence[str]) -> int:
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
