"""The licence of a base model, in the fields that the hub reads; it also covers weights derived from the model."""

from __future__ import annotations

import re
from pathlib import Path

from sdpo.backbones import check_path
from sdpo.config import plain_yaml

_PUBLISHED = {
    "SimianLuo/LCM_Dreamshaper_v7": "mit",
    "Tongyi-MAI/Z-Image-Turbo": "apache-2.0",
    "black-forest-labs/FLUX.1-schnell": "apache-2.0",
    "black-forest-labs/FLUX.2-klein-4B": "apache-2.0",
    "stabilityai/stable-diffusion-xl-base-1.0": "openrail++",
    "stable-diffusion-v1-5/stable-diffusion-v1-5": "creativeml-openrail-m",
}
"""The hub's ids of the licences of models on the hub, as their own cards name them."""

_FIELDS = ("license", "license_name", "license_link")


def base_license(path: str) -> dict[str, str]:
    """Return the fields `license`, and where the hub has no id for it, `license_name` and `license_link`.

    Args:
        path: `model.path` of a config: an embedded model's name, a directory, or a name on the hub.
    """
    folder = check_path(path)
    if folder is None:
        if path in _PUBLISHED:
            return {"license": _PUBLISHED[path]}
        link = f"https://huggingface.co/{path}"
        return {"license": "other", "license_name": "license-of-the-base-model", "license_link": link}
    if folder != Path(path):  # a model that comes with this package, under its licence
        return {"license": "mit"}
    return _of_card(folder / "README.md")


def _of_card(card: Path) -> dict[str, str]:
    """Read the fields from the card in a model's directory; the licence is `unknown` where there is none."""
    try:
        text = card.read_text(encoding="utf-8")
        front = re.match(r"---\r?\n(.*?)\n---", text, re.DOTALL)
        found = plain_yaml.parse(front[1]) if front else None
    except (OSError, ValueError):
        found = None
    fields = found if isinstance(found, dict) else {}
    return {"license": "unknown"} | {key: fields[key] for key in _FIELDS if isinstance(fields.get(key), str)}
