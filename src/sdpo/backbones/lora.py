"""A network's LoRA: added, loaded, checked, merged and saved, by peft and by the pipeline's own loader and writer."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import nn

from sdpo.backbones.lora_files import check_partners, check_whole, locate
from sdpo.backbones.model_index import can_only_be_local
from sdpo.errors import UserError, cause

ADAPTER = "default"
"""Name of the trained LoRA in the network; a LoRA that is fused into the base weights has another name."""

_ONE_STEP = re.compile(r"hyper-?sd\w*-1-?step", re.IGNORECASE)
"""File names of Hyper-SD's one-step LoRAs, such as Hyper-SDXL-1step-lora.safetensors."""


def add(network: Any, rank: int, alpha: float, targets: Sequence[str]) -> None:
    """Add a new LoRA to the modules whose names end in one of the targets; torch's global seed draws its weights.

    Raises:
        UserError: if no module has such a name.
    """
    from peft import LoraConfig  # takes seconds to import, and sampling never needs it

    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(targets), init_lora_weights="gaussian")
    try:
        network.add_adapter(config, adapter_name=ADAPTER)
    except ValueError as error:
        raise UserError(f"lora.targets: {error}") from error


def load(
    pipeline: Any,
    path: str | Path,
    adapter: str = ADAPTER,
    *,
    weight_name: str | None = None,
    setting: str = "",
    from_hub: bool = False,
) -> None:
    """Load a LoRA by the pipeline's own loader, which reads targets, rank and α from the file, and check the result.

    Args:
        pipeline: the diffusers pipeline to add the LoRA to.
        path: a file or a folder; with `from_hub` also a name on the hub.
        adapter: name of the LoRA in the pipeline.
        weight_name: the file to read in a folder or hub repository that holds several.
        setting: the config key that named the path, with ": ", as the beginning of error messages.
        from_hub: whether a path that does not exist may be a name on the hub.

    Raises:
        UserError: if there is no such file or folder, its LoRA does not fit this model, or some of its tensors are
            missing or have no place in this model.
    """
    if not Path(path).exists() and (not from_hub or can_only_be_local(str(path))):
        raise UserError(f"{setting}there is no LoRA file or folder {path}")
    try:
        file = locate(path, weight_name)
        with safe_open(file, framework="pt") as opened:
            check_partners(opened.keys())
        pipeline.load_lora_weights(str(file), adapter_name=adapter, use_safetensors=True)
        check_whole(pipeline, file, adapter)
    except UserError as error:
        raise UserError(f"{setting}the LoRA {path} cannot be used: {error}") from error
    except Exception as error:  # a damaged file, weights of other shapes, no LoRA at all: one message for all
        reason = " ".join(line.strip() for line in str(error).strip().splitlines()[:2]) or cause(error)
        raise UserError(f"{setting}the LoRA {path} cannot be loaded onto this model: {reason}") from error


def check_none_attached(pipeline: Any) -> None:
    """Refuse a pipeline with a LoRA of the user's own, which training would switch off and exports would not contain.

    Args:
        pipeline: the diffusers pipeline, as it was given.

    Raises:
        UserError: naming the LoRAs and the parts of the pipeline that have them.
    """
    parts = {name: list(getattr(part, "peft_config", None) or {}) for name, part in pipeline.components.items()}
    parts = {name: adapters for name, adapters in parts.items() if adapters}
    if parts:
        names = sorted({adapter for adapters in parts.values() for adapter in adapters})
        raise UserError(
            f"the pipeline has the LoRA {', '.join(map(repr, names))} on its {' and '.join(parts)}. Merge it into the "
            f"weights first: pipeline.fuse_lora(components={list(parts)}); pipeline.unload_lora_weights(). Or remove "
            "it: pipeline.unload_lora_weights()."
        )


def check_trainable(network: Any, text_encoders: Sequence[nn.Module], path: str, rank: int, alpha: float) -> None:
    """Refuse a loaded LoRA that training cannot start from: one for another part, or with other settings.

    Args:
        network: the denoising network.
        text_encoders: the pipeline's text encoders, which are never trained.
        path: where the LoRA was loaded from, for messages.
        rank: rank of the LoRA in the config.
        alpha: α of the LoRA in the config.

    Raises:
        UserError: if the LoRA has weights for a text encoder, none for the network, or another rank or α.
    """
    if any(".lora_" in name for module in text_encoders for name, _ in module.named_parameters()):
        raise UserError(f"lora.path: {path} has weights for the text encoder, which is not trained")
    if not attached(network):
        raise UserError(f"lora.path: {path} has no weights for the denoising network")
    found = network.peft_config[ADAPTER]
    if (found.r, found.lora_alpha) != (rank, alpha):
        raise UserError(
            f"lora.path: {path} has rank {found.r} and alpha {found.lora_alpha:g}, but the config has rank {rank} and "
            f"alpha {alpha:g}: set lora.rank={found.r} lora.alpha={found.lora_alpha:g}"
        )


def attached(network: nn.Module, adapter: str = ADAPTER) -> bool:
    """Whether a network has a LoRA of that name."""
    return adapter in getattr(network, "peft_config", {})


@contextlib.contextmanager
def without(network: nn.Module) -> Iterator[None]:
    """A context in which a network computes without its LoRA."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    # One walk for both switches: those of diffusers walk the whole network each, which a small network feels.
    layers = [module for module in network.modules() if isinstance(module, BaseTunerLayer)]
    for layer in layers:
        layer.enable_adapters(enabled=False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(enabled=True)


@contextlib.contextmanager
def scaled(network: nn.Module, strength: float) -> Iterator[None]:
    """A context in which the LoRA's change of a network is multiplied by `strength`."""
    layers: list[Any] = [module for module in network.modules() if ADAPTER in getattr(module, "scaling", {})]
    own = [layer.scaling[ADAPTER] for layer in layers]
    for layer, scaling in zip(layers, own, strict=True):
        layer.scaling[ADAPTER] = strength * scaling
    try:
        yield
    finally:
        for layer, scaling in zip(layers, own, strict=True):
            layer.scaling[ADAPTER] = scaling


def make_trainable(network: nn.Module) -> None:
    """Train the LoRA's weights alone, in float32."""
    for name, parameter in network.named_parameters():
        if ".lora_" in name:
            parameter.data = parameter.data.float()
            parameter.requires_grad_(True)


def idle_parameters(network: nn.Module) -> set[str]:
    """Names of the LoRA's A matrices whose B is 0, as in a new LoRA: their gradient is 0 for every sample."""
    parameters = dict(network.named_parameters())
    up = {name: name.replace(".lora_A.", ".lora_B.") for name in parameters if ".lora_A." in name}
    return {name for name, partner in up.items() if partner in parameters and not parameters[partner].any()}


def fuse(pipeline: Any, component: str, path: str, scale: float, weight_name: str | None) -> None:
    """Merge a LoRA into the base weights before training, such as one that makes a model a few-step model.

    Args:
        pipeline: the diffusers pipeline whose weights change.
        component: name of the pipeline's denoising network.
        path: a file, a folder, or a name on the hub.
        scale: factor of the LoRA's product.
        weight_name: the file to read in a folder or hub repository that holds several.

    Raises:
        UserError: if the LoRA cannot be loaded onto this model, has no weights for its network, or needs a sampler
            that no family has.
    """
    if _ONE_STEP.search(weight_name or str(path)):
        raise UserError(
            f"model.fuse_lora: {weight_name or path} is Hyper-SD's one-step LoRA, which is sampled by a TCDScheduler "
            "or from a timestep of its own, and no sampler here does either. Use Hyper-SD's LoRA for 2, 4 or 8 steps, "
            "with model.scheduler.timestep_spacing=trailing."
        )
    load(pipeline, path, "fused", weight_name=weight_name, setting="model.fuse_lora: ", from_hub=True)
    if not attached(getattr(pipeline, component), "fused"):
        raise UserError(f"model.fuse_lora: {path} has no weights for the denoising network")
    merge(pipeline, scale)


def merge(pipeline: Any, scale: float = 1.0) -> None:
    """Add `scale` times a pipeline's LoRA to its base weights, and remove the LoRA."""
    pipeline.fuse_lora(components=list(pipeline._lora_loadable_modules), lora_scale=scale)
    pipeline.unload_lora_weights()


def save(pipeline: Any, component: str, folder: Path) -> None:
    """Write the LoRA of a pipeline's component as `pytorch_lora_weights.safetensors`, with its rank and α."""
    from peft import get_peft_model_state_dict

    network = getattr(pipeline, component)
    weights = {n: p.detach().cpu().contiguous() for n, p in get_peft_model_state_dict(network).items()}
    metadata = network.peft_config[ADAPTER].to_dict()
    metadata["target_modules"] = sorted(metadata["target_modules"])  # a set, whose order differs between runs
    layers = {f"{component}_lora_layers": weights, f"{component}_lora_adapter_metadata": metadata}
    type(pipeline).save_lora_weights(folder, **layers, safe_serialization=True)
