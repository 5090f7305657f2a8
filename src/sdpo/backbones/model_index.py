"""A local pipeline directory's index and configs: read and checked without loading the model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdpo.errors import UserError

# Schedulers whose last step keeps a variance, and so has a density.
_END_RANDOM = {"DDIMScheduler", "EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler"}
_ALWAYS_RANDOM = {"LCMScheduler"}
_PICKLED = {".bin", ".pt", ".pth", ".ckpt"}
_UNUSED = {"safety_checker", "feature_extractor", "image_encoder"}


def can_only_be_local(path: str) -> bool:
    """Whether a path cannot be a name on the hub: it begins with ".", "/" or "~", or has more than one slash."""
    return path.startswith((".", "/", "~")) or path.count("/") > 1


def read_index(directory: Path, supported: str) -> dict[str, Any]:
    """Read a pipeline directory's `model_index.json`: `_class_name`, and [library, class] by component.

    Args:
        directory: the pipeline's directory.
        supported: a sentence that ends every error message.

    Raises:
        UserError: if the file is missing or damaged.
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
    """Refuse a directory that lacks a component, or has a component's weights as pickles only.

    Args:
        directory: the pipeline's directory.
        index: the directory's index, from `read_index`.
        supported: a sentence that ends every error message.

    Raises:
        UserError: if a component is missing or has no safe weights; the message names the component.
    """
    for name, entry in index.items():
        if name in _UNUSED or not isinstance(entry, list) or entry[0] is None:
            continue
        folder = directory / name
        if not folder.is_dir():
            raise UserError(
                f"model.path: {directory} has no subfolder {name}/, which its model_index.json names: copy the whole "
                f"pipeline, or save it again with pipeline.save_pretrained(directory). {supported}"
            )
        suffixes = {file.suffix for file in folder.iterdir()}
        if suffixes & _PICKLED and ".safetensors" not in suffixes:
            raise UserError(
                f"model.path: {folder} has pickled weights alone, which can run any code when they are loaded. If you "
                "trust them, convert them with pipeline.save_pretrained(directory, safe_serialization=True). "
                f"{supported}"
            )


@dataclass(frozen=True)
class ModelFacts:
    """Facts about a model that determine a run's cost, known before it is loaded; the defaults are for unknown models.

    Attributes:
        scheduler: class name of the model's scheduler.
        embeds_guidance: whether the network takes the guidance scale as an input.
    """

    scheduler: str = "DDIMScheduler"
    embeds_guidance: bool = False

    def ends_random(self, replaced: Mapping[str, Any] | None) -> bool:
        """Whether the last sampling step is random and so has a density.

        Args:
            replaced: `model.scheduler` of the config, whose `name` replaces the model's scheduler; None keeps it.
        """
        return (replaced or {}).get("name", self.scheduler) in _END_RANDOM

    def can_be_deterministic(self, replaced: Mapping[str, Any] | None) -> bool:
        """Whether the sampler has steps without noise, η = 0.

        Args:
            replaced: `model.scheduler` of the config, whose `name` replaces the model's scheduler; None keeps it.
        """
        return (replaced or {}).get("name", self.scheduler) not in _ALWAYS_RANDOM

    @classmethod
    def read(cls, directory: Path, index: dict[str, Any]) -> ModelFacts:
        """Read the facts from a pipeline directory.

        Args:
            directory: the pipeline's directory, which `check_components` has accepted.
            index: the directory's index, from `read_index`.

        Raises:
            UserError: if the network's config is missing or damaged.
        """
        path = directory / ("unet" if "unet" in index else "transformer") / "config.json"
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"model.path: {path} cannot be read: {error!r}") from error
        return cls(index["scheduler"][1], bool(config.get("time_cond_proj_dim") or config.get("guidance_embeds")))
