"""How AUTOMATIC1111 and Forge decide for which base models they list a LoRA, from its header and its settings."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open


def header(file: Path) -> dict[str, str]:
    """The metadata of a safetensors file."""
    with safe_open(file, "pt") as opened:
        return dict(opened.metadata())


def settings(file: Path) -> dict[str, Any]:
    """The settings of a LoRA that the web pages keep beside it."""
    found: dict[str, Any] = json.loads(file.with_name(file.stem + ".json").read_text(encoding="utf-8"))
    return found


def a1111(metadata: Mapping[str, str], user: Mapping[str, Any] = {}) -> str:  # noqa: B006
    """AUTOMATIC1111 1.10: the user's settings come first, if they name one of its versions."""
    if user.get("sd version") in ("Unknown", "SD1", "SD2", "SDXL"):
        return str(user["sd version"])
    if metadata.get("ss_base_model_version", "").startswith("sdxl_"):
        return "SDXL"
    if metadata.get("ss_v2") == "True":
        return "SD2"
    return "SD1" if metadata else "Unknown"


def forge(metadata: Mapping[str, str], user: Mapping[str, Any] = {}) -> str:  # noqa: B006
    """Forge 2: as AUTOMATIC1111, but it knows FLUX.1 by the implementation, and SD 1 by the architecture."""
    if user.get("sd version") in ("Unknown", "SD1", "SD2", "SDXL", "Flux"):
        return str(user["sd version"])
    architecture = metadata.get("modelspec.architecture")
    if metadata.get("modelspec.implementation") == "https://github.com/black-forest-labs/flux":
        return "Flux"
    if architecture == "flux-1-dev/lora":
        return "Flux"
    if architecture == "stable-diffusion-xl-v1-base/lora":
        return "SDXL"
    if metadata.get("ss_base_model_version", "").startswith("sdxl_"):
        return "SDXL"
    if metadata.get("ss_v2") == "True":
        return "SD2"
    return "SD1" if architecture == "stable-diffusion-v1/lora" else "Unknown"
