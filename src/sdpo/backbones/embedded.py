"""The models that come with the package."""

from __future__ import annotations

from pathlib import Path

EMBEDDED = {"emoji": Path(__file__).parents[1] / "assets" / "emoji" / "model"}
"""The folder of each model by name."""


def is_embedded(path: str) -> bool:
    """Whether a path is the name or the folder of a model that comes with the package."""
    return path in EMBEDDED or path in map(str, EMBEDDED.values())
