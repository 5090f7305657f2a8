"""From a model path to a backbone."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from sdpo.backbones import lora
from sdpo.backbones.model_index import can_only_be_local, check_components, read_index
from sdpo.backbones.pipeline import PipelineBackbone
from sdpo.backbones.schedules import replace_scheduler
from sdpo.errors import UserError
from sdpo.system.torchvision import check_torchvision

# Models that come with the package.
EMBEDDED = {"emoji": Path(__file__).parents[1] / "assets" / "emoji" / "model"}

FAMILIES = {
    "StableDiffusionPipeline": "sdpo.backbones.families.stable_diffusion:StableDiffusion",
    "StableDiffusionXLPipeline": "sdpo.backbones.families.stable_diffusion_xl:StableDiffusionXL",
    "LatentConsistencyModelPipeline": "sdpo.backbones.families.stable_diffusion:StableDiffusion",
    "StableDiffusion3Pipeline": "sdpo.backbones.families.stable_diffusion_3:StableDiffusion3",
    "FluxPipeline": "sdpo.backbones.families.flux:Flux",
    "ZImagePipeline": "sdpo.backbones.families.z_image:ZImage",
    "SanaSprintPipeline": "sdpo.backbones.families.sana_sprint:SanaSprint",
    "Flux2KleinPipeline": "sdpo.backbones.families.flux2_klein:Flux2Klein",
}


def embedded(name: str) -> str:
    """The directory of a model that comes with the package, for `DiffusionPipeline.from_pretrained`.

    Raises:
        UserError: if there is none of that name.
    """
    if name not in EMBEDDED:
        raise UserError(f"no model {name!r} comes with the package; there is: {', '.join(EMBEDDED)}")
    return str(EMBEDDED[name])


def check_path(path: str) -> Path | None:
    """The local directory that a model's path names, or None for a name on the hub; loads nothing.

    Raises:
        UserError: if it can be neither, or the directory holds no pipeline of a supported class.
    """
    local = EMBEDDED.get(path, Path(path))
    if os.path.isdir(local):  # Path.is_dir raises for names that no folder can have
        index = pipeline_index(local)
        _check_class(str(index["_class_name"]), path)
        check_components(local, index, _supported())
        return local
    if can_only_be_local(path):
        raise UserError(f"model.path: there is no directory {path!r}.")
    return None


def pipeline_index(directory: Path) -> dict[str, Any]:
    """A local pipeline's index, see `read_index`.

    Raises:
        UserError: if it has none that can be read; the message lists what is supported.
    """
    return read_index(directory, _supported())


def load_backbone(
    path: str,
    *,
    revision: str = "main",
    variant: str | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    **changes: Any,
) -> PipelineBackbone:
    """Load a model from the package, a local directory, or the hub (safetensors only).

    Args:
        path: an embedded model's name, a directory with a `model_index.json`, or a hub name.
        revision: of the hub repository.
        variant: such as "fp16".
        dtype: of the frozen weights.
        device: where it runs.
        changes: see `wrap_pipeline`.

    Raises:
        UserError: if it cannot be found, reached or read, or its pipeline class is not supported.
    """
    check_torchvision()
    local = check_path(path)
    from diffusers import DiffusionPipeline

    try:
        pipeline = DiffusionPipeline.from_pretrained(
            str(local or path),
            revision=revision,
            variant=variant,
            dtype=dtype,
            use_safetensors=True,
            local_files_only=local is not None,
            safety_checker=None,  # it would black out images, and training has no use for it
        )
    except Exception as error:  # whatever the hub or a damaged file raised: the user needs one message, with the cause
        raise UserError(_loading_failed(path, revision, local is not None, error)) from error
    return wrap_pipeline(pipeline, device, **changes)


def wrap_pipeline(
    pipeline: Any,
    device: torch.device | str = "cpu",
    *,
    size: tuple[int | None, int | None] = (None, None),
    scheduler: Mapping[str, Any] | None = None,
    fuse_lora: Mapping[str, Any] | None = None,
) -> PipelineBackbone:
    """A backbone around a diffusers pipeline, such as the user's own.

    Args:
        pipeline: it is changed.
        device: where it runs.
        size: height and width in pixels; None is the model's own.
        scheduler: `name` of another scheduler class, and settings of it that differ from those of the model's own.
        fuse_lora: `path`, `scale` and `weight_name` of a LoRA that becomes part of the base weights, see `lora.fuse`.

    Raises:
        UserError: if its class is not supported, or one of these changes cannot be made.
    """
    name = type(pipeline).__name__
    family = family_of(name, getattr(pipeline, "name_or_path", None) or name)
    if scheduler is not None:
        replace_scheduler(pipeline, scheduler)
    if fuse_lora is not None:
        lora.fuse(pipeline, family.component, **fuse_lora)
    return family(pipeline, torch.device(device), size)


def _check_class(class_name: str, path: str) -> None:
    if class_name not in FAMILIES:
        raise UserError(f"model.path {path!r} is a {class_name}, which is not supported. {_supported()}")


def _supported() -> str:
    return f"Supported are pipelines with safetensors weights of the classes {', '.join(FAMILIES)}."


def family_of(class_name: str, path: str = "") -> type[PipelineBackbone]:
    """The backbone of a pipeline class.

    Raises:
        UserError: if there is none; it names `path`.
    """
    _check_class(class_name, path or class_name)
    module, _, attribute = FAMILIES[class_name].partition(":")
    family: type[PipelineBackbone] = getattr(importlib.import_module(module), attribute)
    return family


def _loading_failed(path: str, revision: str, local: bool, error: Exception) -> str:
    cause = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if local:
        return f"model.path: the pipeline in {path} cannot be loaded: {cause}. {_supported()}"
    return (
        f"model.path: cannot load {path!r} (revision {revision!r}) from the Hugging Face hub: {cause}\n{_supported()}\n"
        "If this machine has no network, copy the model's folder here and point to it:\n"
        f"  sdpo train … model.path=/path/to/{path.rsplit('/', 1)[-1]}\n"
        "The folder is what pipeline.save_pretrained() or `hf download` writes; it holds a model_index.json."
    )
