"""Loading of models: from a path, or from the user's own pipeline, to the backbone of its family."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from sdpo.backbones import lora
from sdpo.backbones.embedded import EMBEDDED, is_embedded
from sdpo.backbones.family_settings import Dtype, family_dtype
from sdpo.backbones.loaded import cached_folder, check_components_loaded, check_has_values
from sdpo.backbones.model_index import can_only_be_local, check_components, read_index
from sdpo.backbones.pipeline import PipelineBackbone
from sdpo.backbones.schedules import replace_scheduler
from sdpo.errors import UserError, cause
from sdpo.method.denoisers.flow import Form
from sdpo.system.torchvision import check_torchvision

"""Directories of the models that come with the package, by name."""

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
"""The backbone of each supported pipeline class, as module:class; a family is imported when it is needed."""


def embedded(name: str) -> str:
    """The directory of a model that comes with the package, for `DiffusionPipeline.from_pretrained`.

    Raises:
        UserError: if no model of that name comes with the package.
    """
    if name not in EMBEDDED:
        raise UserError(f"no model {name!r} comes with the package; there is: {', '.join(EMBEDDED)}")
    return str(EMBEDDED[name])


def check_path(path: str) -> Path | None:
    """The local directory that a model's path names, checked without loading it; None for a name on the hub.

    Args:
        path: `model.path` of a config: an embedded model's name, a directory, or a name on the hub.

    Raises:
        UserError: if the path is neither a directory nor a possible name on the hub, or the directory does not hold a
            complete pipeline of a supported class with safetensors weights.
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
    """The contents of a pipeline directory's `model_index.json`, as `read_index` returns them.

    Raises:
        UserError: if the file is missing or damaged; the message lists the supported pipeline classes.
    """
    return read_index(directory, _supported())


def own_dtype(path: str, revision: str = "main") -> Dtype:
    """The type in which the authors of a model run its weights on a GPU; reads the model's index, not its weights.

    Args:
        path: an embedded model's name, a directory with a `model_index.json`, or a name on the hub.
        revision: branch, tag or commit of the hub repository.

    Raises:
        UserError: if the model cannot be found, reached or read, or its pipeline class is not supported.
    """
    local = check_path(path)
    from diffusers import DiffusionPipeline

    try:
        index = DiffusionPipeline.load_config(str(local or path), revision=revision, local_files_only=local is not None)
    except Exception as error:  # the hub and damaged files raise errors of many classes
        raise UserError(_loading_failed(path, revision, local is not None, error)) from error
    name = str(index["_class_name"])
    _check_class(name, path)
    return family_dtype(name, is_embedded(path))


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
        path: an embedded model's name, a directory with a `model_index.json`, or a name on the hub.
        revision: branch, tag or commit of the hub repository.
        variant: variant of the weight files, such as "fp16".
        dtype: data type of the frozen weights.
        device: the device that the model runs on.
        changes: the keyword arguments of `wrap_pipeline`.

    Raises:
        UserError: if the model cannot be found, reached or read, its pipeline class is not supported, one of its parts
            did not load as it is in its files, or `wrap_pipeline` refuses one of the changes.
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
            safety_checker=None,  # it would black out images
        )
    except Exception as error:  # the hub and damaged files raise errors of many classes
        raise UserError(_loading_failed(path, revision, local is not None, error)) from error
    folder = local or cached_folder(path, revision)
    assert folder is not None, "a model of the hub is loaded from its cache"
    check_components_loaded(pipeline, folder, path, variant)
    return wrap_pipeline(pipeline, device, **changes)


def wrap_pipeline(
    pipeline: Any,
    device: torch.device | str = "cpu",
    *,
    size: tuple[int | None, int | None] = (None, None),
    scheduler: Mapping[str, Any] | None = None,
    fuse_lora: Mapping[str, Any] | None = None,
    noise_form: Form = "preserving",
) -> PipelineBackbone:
    """Build the backbone around a diffusers pipeline, such as the user's own.

    Args:
        pipeline: the diffusers pipeline, which is changed in place.
        device: the device that the pipeline runs on.
        size: height and width of images in pixels; None stands for the model's own.
        scheduler: `name` of another scheduler class, and settings that differ from those of the model's own scheduler.
        fuse_lora: `path`, `scale` and `weight_name` of a LoRA to merge into the base weights.
        noise_form: form of the noise in the sampling steps.

    Raises:
        UserError: if the pipeline's class is not supported, it lacks weights or has a LoRA, its family lacks the form
            of noise, the size does not fit the model, or the scheduler or the LoRA cannot be set up.
    """
    name = type(pipeline).__name__
    family = family_of(name, getattr(pipeline, "name_or_path", None) or name)
    check_has_values(pipeline)
    lora.check_none_attached(pipeline)
    if scheduler is not None:
        replace_scheduler(pipeline, scheduler)
    if fuse_lora is not None:
        lora.fuse(pipeline, family.component, **fuse_lora)
    return family(pipeline, torch.device(device), size, noise_form, fuse_lora is not None)


def _check_class(class_name: str, path: str) -> None:
    if class_name not in FAMILIES:
        raise UserError(f"model.path {path!r} is a {class_name}, which is not supported. {_supported()}")


def _supported() -> str:
    return f"Supported pipeline classes, with safetensors weights: {', '.join(FAMILIES)}."


def family_of(class_name: str, path: str = "") -> type[PipelineBackbone]:
    """The backbone class for a diffusers pipeline class.

    Args:
        class_name: name of the pipeline class.
        path: where the pipeline came from, for messages.

    Raises:
        UserError: if the pipeline class is not supported.
    """
    _check_class(class_name, path or class_name)
    module, _, attribute = FAMILIES[class_name].partition(":")
    family: type[PipelineBackbone] = getattr(importlib.import_module(module), attribute)
    return family


def _loading_failed(path: str, revision: str, local: bool, error: Exception) -> str:
    if local:
        return f"model.path: the pipeline in {path} cannot be loaded: {cause(error)}. {_supported()}"
    return (
        f"model.path: there is no folder {path!r} here, and the Hugging Face hub's (revision {revision!r}) cannot be "
        f"loaded: {cause(error)}\n"
        f"{_supported()}\n"
        "If this machine has no network, copy the model's folder to it and name the folder:\n"
        f"  sdpo train … model.path=/path/to/{path.rsplit('/', 1)[-1]}\n"
        "pipeline.save_pretrained() or `hf download` writes such a folder; it holds a model_index.json."
    )
