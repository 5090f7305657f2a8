"""The file of a LoRA: found, read, and compared with what a pipeline made of it."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from sdpo.errors import UserError
from sdpo.system.loaded_weights import first, raw_bytes

LORA_FILE = "pytorch_lora_weights.safetensors"
"""The file of a LoRA in a folder or hub repository, where no other name is given."""

_DOWN = re.compile(r"(?<=lora_)A(?=\.)|(?<=lora[_.])down(?=\.)|(?<=lora_linear_layer\.)down(?=\.)")
_UP = re.compile(r"(?<=lora_)B(?=\.)|(?<=lora[_.])up(?=\.)|(?<=lora_linear_layer\.)up(?=\.)")
_PARTNERS = {"A": "B", "down": "up", "B": "A", "up": "down"}
_SAME_DIRECTION = 0.999  # cosine of two rows that differ by a factor and by rounding


def locate(path: str | Path, weight_name: str | None = None) -> Path:
    """Find the file of a LoRA: on this machine, else on the Hugging Face hub or in its cache.

    Args:
        path: a file, a folder, or a name on the hub.
        weight_name: the file's name in a folder or hub repository; None stands for `LORA_FILE`, or for the only
            safetensors file.

    Raises:
        UserError: if there are several files to choose from, or none.
    """
    if Path(path).is_file():
        return Path(path)
    if Path(path).is_dir():
        files = [file.name for file in Path(path).iterdir() if file.suffix == ".safetensors"]
        return Path(path) / (weight_name or _only(files))
    from huggingface_hub import hf_hub_download, list_repo_files
    from huggingface_hub.errors import EntryNotFoundError

    try:
        return Path(hf_hub_download(str(path), weight_name or LORA_FILE))
    except EntryNotFoundError:
        if weight_name is not None:
            raise
        files = [name for name in list_repo_files(str(path)) if name.endswith(".safetensors")]
        return Path(hf_hub_download(str(path), _only(files)))


def _only(files: list[str]) -> str:
    if LORA_FILE in files:
        return LORA_FILE
    if len(files) == 1:
        return files[0]
    there = f"holds several files ({first(files)}): name one of them" if files else "holds no safetensors file"
    raise UserError(f"the folder {there}")


def check_partners(tensors: Iterable[str]) -> None:
    """Refuse a file in which one of a module's two matrices is missing; the product would have random values.

    Args:
        tensors: names of the file's tensors.

    Raises:
        UserError: with the number and the names of the missing tensors.
    """
    names = set(tensors)
    missing = {partner for name in names if (partner := _partner(name)) is not None} - names
    if missing:
        matrices = sum(_partner(name) is not None for name in names)
        raise UserError(
            f"{len(missing)} of its {matrices + len(missing)} matrices are missing ({first(missing)}). The file is "
            "incomplete: download or export it again."
        )


def _partner(name: str) -> str | None:
    """The name of a module's other matrix; None for a tensor that is no matrix of a LoRA."""
    if not name.endswith(".weight"):
        return None
    for kind in (_DOWN, _UP):
        if kind.search(name):
            return kind.sub(lambda found: _PARTNERS[found[0]], name)
    return None


def check_whole(pipeline: Any, file: Path, adapter: str) -> None:
    """Refuse a LoRA of which the pipeline's loader left out tensors, or which it filled up with tensors of its own.

    Args:
        pipeline: the diffusers pipeline that has loaded the LoRA.
        file: the LoRA's file.
        adapter: name of the LoRA in the pipeline.

    Raises:
        UserError: with the number and the names of these tensors.
    """
    stored, converted = load_file(file), _converted(pipeline, file)
    unplaced, made_up = _compare(converted, _loaded(pipeline, adapter))
    lost = sorted({*_dropped(stored, converted), *unplaced})
    if lost:
        raise UserError(
            f"{len(lost)} of its {len(stored)} tensors have no place in this model ({first(lost)}). The LoRA was made "
            "for another model, or its format is not one that diffusers converts: use a file for this model, in "
            "diffusers' or kohya's format."
        )
    absent = {*(name.split(".lora_")[0] for name in made_up), *_left_out(pipeline, adapter)}
    if absent:
        raise UserError(
            f"it has no tensors for {len(absent)} of the modules that its metadata name ({first(absent)}). The file is "
            "incomplete: download or export it again."
        )


def _converted(pipeline: Any, file: Path) -> dict[str, Tensor]:
    """The tensors of a file under the names that the pipeline's loader gives them."""
    # The loader of SDXL pipelines passes its network's config, by which it renames blocks.
    extra = {"unet_config": pipeline.unet.config} if "StableDiffusionXL" in type(pipeline).__name__ else {}
    found = pipeline.lora_state_dict(str(file), use_safetensors=True, **extra)
    state: dict[str, Tensor] = found[0] if isinstance(found, tuple) else found
    return state


def _loaded(pipeline: Any, adapter: str) -> dict[str, Tensor]:
    """The tensors of a pipeline's LoRA, in all its parts."""
    parts = {name: getattr(pipeline, name, None) for name in pipeline._lora_loadable_modules}
    return {
        f"{part}.{name}": parameter
        for part, module in parts.items()
        if isinstance(module, nn.Module)
        for name, parameter in module.named_parameters()
        if adapter in name.split(".")
    }


def _compare(converted: Mapping[str, Tensor], loaded: Mapping[str, Tensor]) -> tuple[list[str], list[str]]:
    """Find the converted tensors that were not loaded, and the loaded ones that no converted tensor filled.

    Loaders rename tensors once more, but they keep their values, up to a conversion of the data type.
    """
    places = defaultdict[tuple[torch.dtype, bytes], list[str]](list)
    for name, parameter in loaded.items():
        if not parameter.is_meta:
            places[parameter.dtype, raw_bytes(parameter)].append(name)
    dtypes = Counter(parameter.dtype for parameter in loaded.values())
    unplaced = []
    for name, tensor in converted.items():
        keys = ((dtype, raw_bytes(tensor.to(dtype))) for dtype in dtypes)
        place = next((places[key] for key in keys if places.get(key)), None)
        if place is None:
            unplaced.append(name)
        else:
            place.pop()
    filled = len(converted) - len(unplaced)
    left = {name for names in places.values() for name in names}
    made_up = [name for name, parameter in loaded.items() if name in left or parameter.is_meta]
    assert filled + len(made_up) == len(loaded), "each converted tensor takes one place"
    return unplaced, made_up


def _left_out(pipeline: Any, adapter: str) -> list[str]:
    """Find the modules that the LoRA's own settings name, by the ends of their names, and that have no LoRA."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    found = []
    for part in pipeline._lora_loadable_modules:
        module = getattr(pipeline, part, None)
        settings: Any = (getattr(module, "peft_config", None) or {}).get(adapter)
        if not isinstance(module, nn.Module) or settings is None or settings.exclude_modules:
            continue
        layers = dict(module.named_modules())
        targets = settings.target_modules if isinstance(settings.target_modules, set | list) else ()
        ends = tuple(f".{target}" for target in targets if target not in layers)  # not the whole name of a module
        found += [
            f"{part}.{name}"
            for name, layer in layers.items()
            if (name in targets or name.endswith(ends)) and not isinstance(layer, BaseTunerLayer)
        ]
    return found


def _dropped(stored: Mapping[str, Tensor], converted: Mapping[str, Tensor]) -> list[str]:
    """Find the tensors of a file that its conversion to diffusers' names left out.

    A conversion may scale a matrix by α / rank, and divide it or repeat it for several modules. The direction of the
    first row of a down matrix survives all of these. An up matrix goes where its partner goes.
    """
    known = defaultdict[int, list[Tensor]](list)
    for direction in _directions(converted).values():
        known[len(direction)].append(direction)
    stacked = {length: torch.stack(directions) for length, directions in known.items()}
    new = {name: tensor for name, tensor in stored.items() if name not in converted}
    return [
        name
        for name, direction in _directions(new).items()
        if len(direction) not in stacked or (stacked[len(direction)] @ direction).abs().max() < _SAME_DIRECTION
    ]


def _directions(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Unit vectors along the first rows of down matrices, and along all numbers of other tensors than up matrices.

    α and tensors of zeros have no direction and are left out.
    """
    found = {}
    for name, tensor in tensors.items():
        if not name.endswith("alpha") and not _UP.search(name):
            row = (tensor.flatten(1)[0] if _DOWN.search(name) else tensor.flatten()).float()
            if row.any():
                found[name] = row / row.norm()
    return found
