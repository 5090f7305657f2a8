"""Whether the parts of a pipeline hold the weights of its files, and not random or missing ones."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import nn

from sdpo.errors import UserError
from sdpo.system.loaded_weights import check_loaded, first, variants, weight_files


def check_components_loaded(pipeline: Any, folder: Path, path: str, variant: str | None) -> None:
    """Refuse a pipeline with a part that did not load as it is in its files.

    Args:
        pipeline: the diffusers pipeline, as it was loaded.
        folder: the pipeline's folder, which has one folder for each part.
        path: `model.path` of the config, for messages.
        variant: variant of the weight files, such as "fp16".

    Raises:
        UserError: naming the part, its file, and the first tensors that are missing or surplus.
    """
    for name, module in _modules(pipeline):
        if getattr(module, "hf_quantizer", None) is None:  # quantised files hold packed tensors and their scales
            check_loaded(module, weight_files(folder / name, variant), f"model.path: the {name} of {path}")


def check_has_values(pipeline: Any) -> None:
    """Refuse a pipeline with tensors that have a shape but no values, because the files lacked them.

    Args:
        pipeline: a diffusers pipeline, such as the user's own.

    Raises:
        UserError: naming the part and the first of these tensors.
    """
    for name, module in _modules(pipeline):
        empty = [key for key, tensor in module.state_dict().items() if tensor.is_meta]
        if empty:
            raise UserError(
                f"{len(empty)} tensors of the pipeline's {name} have no values ({first(empty)}): the files that it was "
                "loaded from lack them. Download them again, and load the pipeline anew."
            )


def origin(pipeline: Any) -> str | None:
    """The path that a user's pipeline was loaded from; None if it has none, or no longer has the weights of that path.

    The network's weights are compared with those on this machine: they differ after `fuse_lora`, and wherever the user
    has set them.

    Args:
        pipeline: a diffusers pipeline.
    """
    path = str(getattr(pipeline, "name_or_path", None) or "")
    if not path:
        return None
    folder = Path(path) if os.path.isdir(path) else cached_folder(path)
    for name in ("unet", "transformer"):
        module = getattr(pipeline, name, None)
        if folder is not None and isinstance(module, nn.Module):
            stored = [files for variant in variants(folder / name) if (files := weight_files(folder / name, variant))]
            if stored and not any(_holds(module, files) for files in stored):
                return None
    return path


def cached_folder(path: str, revision: str = "main") -> Path | None:
    """The folder of a model in the hub's cache; None where the cache does not have it.

    Args:
        path: the model's name on the hub.
        revision: branch, tag or commit.
    """
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(path, "model_index.json", revision=revision)
    except HFValidationError:  # not a possible name on the hub
        return None
    return Path(found).parent if isinstance(found, str) else None


def _holds(module: nn.Module, files: list[Path]) -> bool:
    try:
        check_loaded(module, files, "")
    except UserError:
        return False
    return True


def _modules(pipeline: Any) -> Iterator[tuple[str, nn.Module]]:
    """The networks of a pipeline by name."""
    return ((name, part) for name, part in pipeline.components.items() if isinstance(part, nn.Module))
