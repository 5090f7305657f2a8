"""The check of files that are not on this machine: whether the Hugging Face hub can provide them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence

import requests

from sdpo.backbones import check_path
from sdpo.backbones.lora_files import LORA_FILE
from sdpo.commands.doctor.finding import Finding
from sdpo.config import Config
from sdpo.rewards.models.weights import SOURCES, to_download
from sdpo.system.units import gigabytes

_TIMEOUT = 5.0  # seconds for the hub to answer


def to_fetch(config: Config, names: Sequence[str]) -> dict[str, str]:
    """Find what must be fetched from the hub before training.

    Args:
        config: the configuration of a run.
        names: names of rewards.

    Returns:
        What must be fetched, in words, by name of the reward, or `model`.
    """
    found = {}
    path, revision, fused = config.model.path, config.model.revision, config.model.fuse_lora
    if check_path(path) is None and not _cached(path, "model_index.json", revision):
        found["model"] = f"the model {path}"
    elif fused and not os.path.exists(fused.path):
        if not _cached(fused.path, fused.weight_name or LORA_FILE):
            found["model"] = f"the LoRA {fused.path}"
    for name in names:
        size = to_download(name, config.reward_options.get(name, {}).get("path")) if name in SOURCES else 0
        if size:
            found[name] = f"{gigabytes(1e6 * size)} for the reward {name}"
    return found


def _cached(repository: str, file: str, revision: str = "main") -> bool:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        return isinstance(try_to_load_from_cache(repository, file, revision=revision), str)
    except HFValidationError:
        return True  # not a possible name on the hub, which loading reports


def check_hub(missing: Mapping[str, str]) -> Iterator[Finding]:
    """Check whether missing files can be fetched; the hub is asked only where there are some.

    Args:
        missing: what must be fetched, as `to_fetch` returns it.
    """
    if not missing:
        yield Finding("hub", "ok", "not needed: everything is on this machine")
        return
    from huggingface_hub.constants import ENDPOINT, HF_HUB_OFFLINE

    wanted = ", ".join(missing.values())
    place = "put the files on this machine and name them by model.path or reward_options.NAME.path"
    if HF_HUB_OFFLINE:
        yield Finding("hub", "FAIL", f"{wanted} must be fetched, but HF_HUB_OFFLINE is set: unset it, or {place}")
        return
    try:
        requests.head(ENDPOINT, timeout=_TIMEOUT)
    except requests.RequestException as error:
        text = f"{wanted} must be fetched, but the hub does not answer ({type(error).__name__}): {place}"
        yield Finding("hub", "FAIL", text)
        return
    text = f"{wanted} will be fetched when training starts: fetch it now with `hf download`, and rerun this command"
    yield Finding("hub", "WARN", text)
