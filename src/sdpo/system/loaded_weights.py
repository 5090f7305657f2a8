"""Whether a loaded model holds exactly the tensors of its safetensors files, whatever names a library gave them."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from sdpo.errors import UserError, cause

_COMPUTED = re.compile(
    r"(^|\.)(position_ids"  # the numbers 0, 1, 2, …, which older libraries saved and newer ones compute
    r"|inv_freq"  # frequencies of rotary positions, computed from the config
    r"|num_batches_tracked)$"  # counts the training steps of a batch norm; inference never reads it
)
"""Tensors that may be missing from a model or from its file."""

_UNUSED = {
    # The image half of a whole CLIP, and the projections and the temperature of its contrastive loss.
    "CLIPTextModel": re.compile(r"(vision_model|visual_projection|text_projection)\.|logit_scale$"),
    "CLIPTextModelWithProjection": re.compile(r"(vision_model|visual_projection)\.|logit_scale$"),
    # The half of a whole T5 that writes text.
    "T5EncoderModel": re.compile(r"(decoder|lm_head)\."),
    # The layer that predicts the next token; a prompt's embeddings are the hidden states before it.
    "Gemma2Model": re.compile(r"lm_head\."),
    "Qwen3Model": re.compile(r"lm_head\."),
}
"""Tensors of a file that a class of text encoders leaves out because it does not compute with them, by class name."""

_STEMS = ("diffusion_pytorch_model", "model")  # file names of diffusers and of transformers
_SIDE = 8  # 8 × 8 numbers from the middle of each tensor are compared
_NAMED = 3  # tensors that a message names

Fingerprint = tuple[tuple[int, ...], bytes]
"""A tensor's shape and some of its numbers."""

Contents = dict[str, dict[torch.dtype, Fingerprint]]
"""The tensors of a model's files by name: their fingerprints after conversion to each data type of the model."""


def variants(folder: Path) -> list[str | None]:
    """The variants of a model's weight files in a folder, such as "fp16"; None stands for files without a variant."""
    name = re.compile(rf"({'|'.join(_STEMS)})(-\d+-of-\d+)?(\.(?P<variant>\w+))?(-\d+-of-\d+)?\.safetensors")
    files = (name.fullmatch(file.name) for file in folder.glob("*.safetensors"))
    return sorted({found["variant"] for found in files if found}, key=str)


def weight_files(folder: Path, variant: str | None = None) -> list[Path]:
    """Find the safetensors files that diffusers or transformers reads for a model.

    Args:
        folder: the model's folder.
        variant: variant of the weight files, such as "fp16"; a folder without that variant is read without it.

    Returns:
        One file, or the shards that an index lists; empty if the folder has neither.

    Raises:
        UserError: if the index cannot be read.
    """
    for suffix in dict.fromkeys([f".{variant}" if variant else "", ""]):
        for stem in _STEMS:
            single = folder / f"{stem}{suffix}.safetensors"
            names = (f"{stem}.safetensors.index{suffix}.json", f"{stem}.safetensors{suffix}.index.json")
            index = next((folder / name for name in names if (folder / name).is_file()), None)
            if index is not None and not (single.is_file() and stem == "model"):  # transformers prefers one file
                return _shards(index)
            if single.is_file():
                return [single]
    return []


def _shards(index: Path) -> list[Path]:
    try:
        names = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        return [index.parent / name for name in sorted(set(names))]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{index} cannot be read: {error!r}. Download it again.") from error


def check_loaded(module: nn.Module, files: Sequence[Path], where: str) -> None:
    """Refuse a model with a tensor that came from no file, and files with a tensor that went nowhere.

    A tensor came from the file if that has one of the same name, shape and values. Where a library renames tensors as
    it loads them, shape and values decide, and each tensor of a name that the model does not know fills one of the
    model. Values are compared on at most 64 numbers of each tensor, which costs a small part of the time of loading.

    Args:
        module: the model as it was loaded.
        files: its safetensors files.
        where: what the model is and where it lies, as the beginning of the message.

    Raises:
        UserError: if a tensor is missing or surplus, or a file cannot be read; the message names the first ones.
    """
    if not files:
        raise UserError(f"{where} has no safetensors file of its weights. Download the folder again.")
    tensors = module.state_dict()
    contents = _read(files, {tensor.dtype for tensor in tensors.values()})
    unfilled, unused = _match(tensors, contents)
    harmless = _UNUSED.get(type(module).__name__)
    missing = [name for name in unfilled if not _COMPUTED.search(name)]
    surplus = [n for n in unused if not _COMPUTED.search(n) and not (harmless and harmless.match(n))]
    if missing or surplus:
        wrong = {
            f"{len(missing)} of {len(tensors)} tensors of the {type(module).__name__} are not in the file": missing,
            f"{len(surplus)} of {len(contents)} tensors of the file are not in the model": surplus,
        }
        found = "; ".join(f"{words} ({first(names)})" for words, names in wrong.items() if names)
        read = ", ".join(file.name for file in files)
        raise UserError(f"{where} was not loaded from {read} as a whole: {found}. {_advice(module)}")


def _advice(module: nn.Module) -> str:
    library = type(module).__module__.partition(".")[0]
    version = getattr(sys.modules[library], "__version__", "")
    return (
        f"The file is damaged, or {library} {version} knows these tensors by other names. Download the folder again, "
        f"upgrade {library}, or save the model anew by save_pretrained(FOLDER) with the versions that it was made with."
    )


def first(names: Collection[str]) -> str:
    """The first few of some names in alphabetical order, and how many more there are."""
    shown = ", ".join(sorted(names)[:_NAMED])
    return shown if len(names) <= _NAMED else f"{shown} and {len(names) - _NAMED} more"


def _read(files: Sequence[Path], dtypes: Collection[torch.dtype]) -> Contents:
    found: Contents = {}
    for file in files:
        try:
            with safe_open(file, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118, which is no dictionary
                    part: Any = opened.get_slice(name)
                    shape = tuple(part.get_shape())
                    sample = part[_middle(shape)] if shape else opened.get_tensor(name)
                    found[name] = {dtype: (shape, raw_bytes(sample.to(dtype))) for dtype in dtypes}
        except (OSError, SafetensorError) as error:
            raise UserError(f"{file} cannot be read: {cause(error)}. Download it again.") from error
    return found


def _match(tensors: Mapping[str, Tensor], contents: Contents) -> tuple[list[str], list[str]]:
    """Find the tensors that no tensor of the file filled, and the file's tensors that filled none."""
    prints = {name: _fingerprint(tensor) for name, tensor in tensors.items()}
    same = {n for n in prints.keys() & contents.keys() if prints[n] == contents[n][tensors[n].dtype]}
    spare: dict[tuple[torch.dtype, Fingerprint], set[str]] = {}
    for name in contents.keys() - tensors.keys():
        for dtype, fingerprint in contents[name].items():
            spare.setdefault((dtype, fingerprint), set()).add(name)
    used = set(same)
    filled = {_storage(tensors[name]) for name in same}  # tied weights are one tensor under several names
    for name, tensor in tensors.items():
        own = prints[name]
        if own is None or _storage(tensor) in filled:
            continue
        if renamed := spare.get((tensor.dtype, own), set()) - used:
            used.add(min(renamed))
            filled.add(_storage(tensor))
    return [n for n in tensors if _storage(tensors[n]) not in filled], [n for n in contents if n not in used]


def _storage(tensor: Tensor) -> tuple[int, torch.Size]:
    return (id(tensor) if tensor.is_meta else tensor.data_ptr()), tensor.shape


def _fingerprint(tensor: Tensor) -> Fingerprint | None:
    """The fingerprint of a model's tensor; None for one that the library left without values."""
    return None if tensor.is_meta else (tuple(tensor.shape), raw_bytes(tensor[_middle(tensor.shape)]))


def _middle(shape: Sequence[int]) -> tuple[slice, ...]:
    """The index of at most 64 numbers in the middle of a tensor: up to 8 × 8 in its last two axes, one in the others.

    The only axis of a vector is read up to 64.
    """
    sides = [_SIDE**2] if len(shape) == 1 else [1] * (len(shape) - 2) + [_SIDE] * min(2, len(shape))
    return tuple(slice(start := max(0, (n - side) // 2), start + side) for n, side in zip(shape, sides, strict=True))


def raw_bytes(tensor: Tensor) -> bytes:
    """The values of a tensor as the bytes in memory, in row-major order."""
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
