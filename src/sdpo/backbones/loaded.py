"""Whether the parts of a loaded pipeline hold their own weights, and not the random or missing ones of a failed load."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import nn

from sdpo.errors import UserError
from sdpo.system.loaded_weights import check_loaded, first, weight_files


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


def _modules(pipeline: Any) -> Iterator[tuple[str, nn.Module]]:
    """The networks of a pipeline by name."""
    return ((name, part) for name, part in pipeline.components.items() if isinstance(part, nn.Module))
