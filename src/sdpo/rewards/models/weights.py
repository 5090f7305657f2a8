"""The files of the reward models: a table of pinned sources, and the search for them on this machine and the hub."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from sdpo.errors import UserError, cause

ENVIRONMENT = "SDPO_REWARDS"
"""The environment variable that names a folder with one folder of files for each reward."""


@dataclass(frozen=True)
class Source:
    """Files of one repository on the Hugging Face hub.

    Attributes:
        repository: owner/name.
        revision: the commit, 40 hexadecimal digits.
        files: the names of the files that are used.
        licence: the licence that the repository states.
        megabytes: the size of the files in MB.
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
    """Find the files of a reward model: in a folder, else in `$SDPO_REWARDS/<name>`, else on the hub or in its cache.

    Args:
        name: the reward's name, a key of `SOURCES`.
        path: a folder with the files; None searches the other places.

    Returns:
        The path of each file, by file name.

    Raises:
        UserError: if a file is missing or the hub cannot be reached; the message lists which files to place where.
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
    """The size in MB of what `locate` would download: the repositories with a file neither in a folder nor cached.

    Args:
        name: the reward's name, a key of `SOURCES`.
        path: a folder with the files; None searches the other places.
    """
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
            _reach_hub()  # fails in seconds; the hub's client would retry for half a minute
            return Path(hf_hub_download(source.repository, file, revision=source.revision))
    except Exception as error:  # whatever the hub's client raises, the user needs the same message
        raise UserError(
            f"reward {name!r}: {file} of {source.repository} cannot be downloaded from the Hugging Face hub: "
            f"{cause(error)}\n{_instructions(name)}"
        ) from error


def _reach_hub() -> None:
    import requests
    from huggingface_hub.constants import ENDPOINT

    requests.head(ENDPOINT, timeout=5)


def _instructions(name: str) -> str:
    lines = [
        f"Place these files in a folder {name}. Name that folder by reward_options.{name}.path=…/{name} (for "
        f"`sdpo score`: --option path=…/{name}), or name its parent by the environment variable {ENVIRONMENT}:"
    ]
    for source in SOURCES[name]:
        lines += [
            f"  https://huggingface.co/{source.repository}/resolve/{source.revision}/{file}" for file in source.files
        ]
    return "\n".join(lines)
