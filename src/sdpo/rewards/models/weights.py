"""Where the reward models' weights come from: one table, pinned; and how they are found and read."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sdpo.errors import UserError

ENVIRONMENT = "SDPO_REWARDS"
"""Environment variable: a folder with one folder of files for each reward."""


@dataclass(frozen=True)
class Source:
    """Files of one repository on the Hugging Face hub.

    Attributes:
        repository: owner/name.
        revision: commit.
        files: what is read of it.
        licence: as the repository states it.
        megabytes: to download.
    """

    repository: str
    revision: str
    files: tuple[str, ...]
    licence: str
    megabytes: int


_CLIP_L = "openai/clip-vit-large-patch14"
_CLIP_L_REVISION = "32bd64288804d66eefd0ccbe215aa642df71cc41"
_BPE = ("vocab.json", "merges.txt")
_HPS = ("xswu/HPSv2", "697403c78157020a1ae59d23f111aa58ced35b0a")
_BPE_OF_CLIP_L = Source(_CLIP_L, _CLIP_L_REVISION, _BPE, "MIT", 2)

SOURCES: dict[str, tuple[Source, ...]] = {
    "aesthetic": (
        Source(_CLIP_L, _CLIP_L_REVISION, ("config.json", "model.safetensors"), "MIT", 1711),
        Source(
            "trl-lib/ddpo-aesthetic-predictor",
            "cf4bd10345610935a80a5d3be9a3133c50f121e4",
            ("aesthetic-model.pth",),
            "Apache-2.0",
            4,
        ),
    ),
    "imagereward": (
        Source(
            "zai-org/ImageReward",
            "5736be03b2652728fb87788c9797b0570450ab72",
            ("ImageReward.pt",),
            "Apache-2.0",
            1790,
        ),
        Source(
            "google-bert/bert-base-uncased",
            "86b5e0934494bd15c9632b12f734a8a67f723594",
            ("vocab.txt",),
            "Apache-2.0",
            1,
        ),
    ),
    "hpsv2": (Source(*_HPS, ("HPS_v2_compressed.pt",), "Apache-2.0", 1973), _BPE_OF_CLIP_L),
    "hpsv2.1": (Source(*_HPS, ("HPS_v2.1_compressed.pt",), "Apache-2.0", 1973), _BPE_OF_CLIP_L),
    "pickscore": (
        Source(
            "yuvalkirstain/PickScore_v1",
            "a4e4367c6dfa7288a00c550414478f865b875800",
            ("config.json", "model.safetensors"),
            "MIT",
            3945,
        ),
        Source(
            "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
            "1c2b8495b28150b8a4922ee1c8edee224c284c0c",
            _BPE,
            "MIT",
            2,
        ),
    ),
    "clipscore": (Source(_CLIP_L, _CLIP_L_REVISION, ("config.json", "model.safetensors", *_BPE), "MIT", 1713),),
}


def locate(name: str, path: str | None = None) -> dict[str, Path]:
    """The files of a reward model: in `path`, else in `$SDPO_REWARDS/<name>`, else from the hub (or its cache).

    Returns:
        By file name, where each lies.

    Raises:
        UserError: if one is missing or the hub cannot be reached; says which files to place where.
    """
    sources = SOURCES[name]
    root = os.environ.get(ENVIRONMENT)
    folder = Path(path) if path is not None else Path(root) / name if root else None
    wanted = [file for source in sources for file in source.files]
    if folder is not None and (path is not None or folder.is_dir()):
        missing = [file for file in wanted if not (folder / file).is_file()]
        if missing:
            raise UserError(f"reward {name!r}: {folder} has no {', '.join(missing)}.\n{_instructions(name)}")
        return {file: folder / file for file in wanted}
    return {file: _download(name, source, file) for source in sources for file in source.files}


def to_download(name: str, path: str | None = None) -> int:
    """Megabytes that `locate` would fetch: of the repositories of which a file is neither in a folder nor cached."""
    from huggingface_hub import try_to_load_from_cache

    root = os.environ.get(ENVIRONMENT)
    if path is not None or (root and (Path(root) / name).is_dir()):
        return 0
    return sum(
        source.megabytes
        for source in SOURCES[name]
        if not all(
            isinstance(try_to_load_from_cache(source.repository, file, revision=source.revision), str)
            for file in source.files
        )
    )


def _download(name: str, source: Source, file: str) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        try:
            return Path(hf_hub_download(source.repository, file, revision=source.revision, local_files_only=True))
        except LocalEntryNotFoundError:
            _reach_hub()  # in seconds; the hub's client would try for half a minute
            return Path(hf_hub_download(source.repository, file, revision=source.revision))
    except Exception as error:  # whatever the hub's client raises, the user needs the same message
        cause = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"reward {name!r}: cannot fetch {file} of {source.repository} from the Hugging Face hub: {cause}\n"
            + _instructions(name)
        ) from error


def _reach_hub() -> None:
    import requests
    from huggingface_hub.constants import ENDPOINT

    requests.head(ENDPOINT, timeout=5)


def _instructions(name: str) -> str:
    lines = [
        f"Place these files in a folder {name}, and name it by reward_options.{name}.path=…/{name} (for `sdpo score`: "
        f"--option path=…/{name}), or the folder it lies in by the environment variable {ENVIRONMENT}:"
    ]
    for source in SOURCES[name]:
        lines += [
            f"  https://huggingface.co/{source.repository}/resolve/{source.revision}/{file}" for file in source.files
        ]
    return "\n".join(lines)


def read_tensors(path: Path) -> dict[str, Any]:
    """The contents of a `.safetensors` file, or of a pickled one that holds tensors and plain containers alone.

    Raises:
        UserError: if it is damaged, or a pickle would run code.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damage has many names; a forbidden global is one of them
        raise UserError(
            f"{path} cannot be loaded as tensors alone: {str(error).strip().splitlines()[0]}. "
            "A pickle that names other objects can run code and is refused; a damaged file must be fetched again."
        ) from error


def build_with(factory: Callable[[], nn.Module], state: Mapping[str, Tensor], where: str) -> nn.Module:
    """A frozen float32 model that holds exactly these weights; it is never initialised at random first.

    Raises:
        UserError: if a key is missing, unexpected, or of another shape.
    """
    from accelerate import init_empty_weights

    with init_empty_weights():  # parameters on the meta device, buffers (position ids) real
        model = factory()
    try:
        model.load_state_dict({name: value.float() for name, value in state.items()}, strict=True, assign=True)
    except RuntimeError as error:
        raise UserError(f"{where} does not hold the weights of a {type(model).__name__}: {error}") from error
    return model.eval().requires_grad_(False)
