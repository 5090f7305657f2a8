"""What a local pipeline directory must hold, found out without loading it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdpo.errors import UserError

# Schedulers on which the last step keeps a variance.
_END_RANDOM = {"DDIMScheduler", "EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler"}
_PICKLED = {".bin", ".pt", ".pth", ".ckpt"}
_UNUSED = {"safety_checker", "feature_extractor", "image_encoder"}


def can_only_be_local(path: str) -> bool:
    """Whether a path is no name that something on the hub could have."""
    return path.startswith((".", "/", "~")) or path.count("/") > 1


def read_index(directory: Path, supported: str) -> dict[str, Any]:
    """The directory's `model_index.json`: its `_class_name`, and [library, class] by component.

    Args:
        directory: of a pipeline.
        supported: a sentence that ends every message.

    Raises:
        UserError: if there is none, or it cannot be read.
    """
    index = directory / "model_index.json"
    try:
        found: dict[str, Any] = json.loads(index.read_text(encoding="utf-8"))
        found["_class_name"]
    except FileNotFoundError as error:
        raise UserError(
            f"model.path: {directory} is not a diffusers pipeline directory, it has no model_index.json. "
            f"Save one with pipeline.save_pretrained(directory). {supported}"
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"model.path: {index} cannot be read: {error!r}. {supported}") from error
    return found


def check_components(directory: Path, index: dict[str, Any], supported: str) -> None:
    """Refuse a directory that lacks a component, or has its weights pickled alone.

    Args:
        directory: of a pipeline.
        index: its `read_index`.
        supported: a sentence that ends every message.

    Raises:
        UserError: naming the component.
    """
    for name, entry in index.items():
        if name in _UNUSED or not isinstance(entry, list) or entry[0] is None:
            continue
        folder = directory / name
        if not folder.is_dir():
            raise UserError(
                f"model.path: {directory} has no subfolder {name}/, which its model_index.json names: copy the whole "
                f"pipeline, or save it anew by pipeline.save_pretrained(directory). {supported}"
            )
        suffixes = {file.suffix for file in folder.iterdir()}
        if suffixes & _PICKLED and ".safetensors" not in suffixes:
            raise UserError(
                f"model.path: {folder} has pickled weights alone, which can run any code when they are loaded. Convert "
                "them where you trust them, by pipeline.save_pretrained(directory, safe_serialization=True). "
                f"{supported}"
            )


@dataclass(frozen=True)
class Peek:
    """What a model's small files say about the cost of a run; the default is that of an unknown one.

    Attributes:
        scheduler: its class.
        embeds_guidance: the network takes the guidance scale as an input.
    """

    scheduler: str = "DDIMScheduler"
    embeds_guidance: bool = False

    def ends_random(self, replaced: Mapping[str, Any] | None) -> bool:
        """Whether the last step has a density, on this scheduler or the one whose settings replace it."""
        return (replaced or {}).get("name", self.scheduler) in _END_RANDOM

    @classmethod
    def at(cls, directory: Path, index: dict[str, Any]) -> Peek:
        """Of a pipeline directory that has been checked.

        Raises:
            UserError: if its network has no readable config.
        """
        path = directory / ("unet" if "unet" in index else "transformer") / "config.json"
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"model.path: {path} cannot be read: {error!r}") from error
        return cls(index["scheduler"][1], bool(config.get("time_cond_proj_dim") or config.get("guidance_embeds")))
