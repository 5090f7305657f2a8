"""A network's LoRA: made, continued from a file, written, by peft and by the pipeline's own loader and writer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from sdpo.backbones.model_index import can_only_be_local
from sdpo.errors import UserError

ADAPTER = "default"


def add(network: Any, rank: int, alpha: float, targets: Sequence[str]) -> None:
    """Put a new LoRA on the modules whose names end in one of the targets; its weights come from torch's global seed.

    Raises:
        UserError: if no module has such a name.
    """
    from peft import LoraConfig  # takes seconds to import, and sampling has no use for it

    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(targets), init_lora_weights="gaussian")
    try:
        network.add_adapter(config, adapter_name=ADAPTER)
    except ValueError as error:
        raise UserError(f"lora.targets: {error}") from error


def load(
    pipeline: Any, path: str | Path, adapter: str = ADAPTER, weight_name: str | None = None, setting: str = ""
) -> None:
    """Attach a finished LoRA by the pipeline's own loader, which knows its targets, rank and alpha.

    Args:
        pipeline: it is changed.
        path: a file, a folder, or a name on the hub.
        adapter: what it is called in the pipeline.
        weight_name: the file in a folder or hub repository that holds several.
        setting: begins the message of an error.

    Raises:
        UserError: if it is none of this model's.
    """
    try:
        pipeline.load_lora_weights(str(path), adapter_name=adapter, weight_name=weight_name, use_safetensors=True)
    except Exception as error:  # a damaged file, other shapes, no LoRA at all: one message
        reason = " ".join(line.strip() for line in str(error).strip().splitlines()[:2]) or type(error).__name__
        raise UserError(f"{setting}the LoRA {path} cannot be loaded onto this model: {reason}") from error


def fuse(pipeline: Any, component: str, path: str, scale: float, weight_name: str | None) -> None:
    """Add a LoRA to the base weights for good, such as one that makes a model a few-step model.

    Args:
        pipeline: whose weights change.
        component: its denoising network.
        path: a file, a folder, or a name on the hub.
        scale: of what is added.
        weight_name: the file in a folder or hub repository that holds several.

    Raises:
        UserError: if it cannot be loaded onto this model, or has nothing for its network.
    """
    setting = "model.fuse_lora: "
    if can_only_be_local(path) and not Path(path).exists():
        raise UserError(f"{setting}there is no LoRA file or folder {path}")
    load(pipeline, path, "fused", weight_name, setting)
    if "fused" not in getattr(getattr(pipeline, component), "peft_config", {}):
        raise UserError(f"{setting}{path} has no weights for the denoising network")
    merge(pipeline, scale)


def merge(pipeline: Any, scale: float = 1.0) -> None:
    """Add the LoRA that is on a pipeline to its base weights for good."""
    pipeline.fuse_lora(components=list(pipeline._lora_loadable_modules), lora_scale=scale)
    pipeline.unload_lora_weights()


def check_continued(network: Any, others: Sequence[nn.Module], path: str, rank: int, alpha: float) -> None:
    """Refuse a loaded LoRA that is not one of this network alone with these settings.

    Raises:
        UserError: saying which settings it has.
    """
    if any(".lora_" in name for module in others for name, _ in module.named_parameters()):
        raise UserError(f"lora.path: {path} has weights for the text encoder, which is not trained")
    found = getattr(network, "peft_config", {}).get(ADAPTER)
    if found is None:
        raise UserError(f"lora.path: {path} has no weights for the denoising network")
    if (found.r, found.lora_alpha) != (rank, alpha):
        raise UserError(
            f"lora.path: {path} has rank {found.r} and alpha {found.lora_alpha:g}, the settings rank {rank} and "
            f"alpha {alpha:g}: set lora.rank={found.r} lora.alpha={found.lora_alpha:g}"
        )


def make_trainable(network: nn.Module) -> None:
    """Train the LoRA's weights alone, in float32."""
    for name, parameter in network.named_parameters():
        if ".lora_" in name:
            parameter.data = parameter.data.float()
            parameter.requires_grad_(True)


def save(pipeline: Any, component: str, folder: Path) -> None:
    """Write the LoRA of a pipeline's component as `pytorch_lora_weights.safetensors`, with its rank and alpha."""
    from peft import get_peft_model_state_dict

    network = getattr(pipeline, component)
    weights = {n: p.detach().cpu().contiguous() for n, p in get_peft_model_state_dict(network).items()}
    metadata = network.peft_config[ADAPTER].to_dict()
    metadata["target_modules"] = sorted(metadata["target_modules"])  # a set: its order would differ between runs
    layers = {f"{component}_lora_layers": weights, f"{component}_lora_adapter_metadata": metadata}
    type(pipeline).save_lora_weights(folder, **layers, safe_serialization=True)
