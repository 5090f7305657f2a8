"""Reads the configurations of runs that earlier versions wrote.

A run's `config.yaml` holds every setting of the version that wrote it. A setting that it lacks was added since, and the
run was made without it; where the present default means something else, the value that the run had stands here.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

Meaning = Callable[[dict[str, Any]], Any]

ADDED: dict[str, Meaning] = {}
"""`section.key` → the value that runs of versions without this setting had, as a function of the configuration."""

CHANGED: list[Callable[[dict[str, Any]], None]] = []
"""Rewrites of settings whose meaning changed, in place, each a function of a configuration of an earlier version."""


def as_meant(data: dict[str, Any]) -> dict[str, Any]:
    """The configuration of a run with its settings as this version names them.

    Args:
        data: the content of a run's `config.yaml`; it is not changed.
    """
    found = copy.deepcopy(data)
    missing = {name: meaning for name, meaning in ADDED.items() if _lacks(found, name)}
    if missing:
        for change in CHANGED:
            change(found)
    for name, meaning in missing.items():
        section, _, key = name.rpartition(".")
        place = found.setdefault(section, {}) if section else found
        place[key] = meaning(data)
    return found


def _lacks(data: dict[str, Any], name: str) -> bool:
    section, _, key = name.rpartition(".")
    place = data.get(section, {}) if section else data
    return isinstance(place, dict) and key not in place
