"""In what two configurations differ, setting by setting."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from sdpo.config import RESUMABLE, WHOLE

# What two runs of one experiment may differ in: where they ran and what they kept.
OF_THE_MACHINE = frozenset(RESUMABLE) - {"evaluate", "stop_when"}
OF_THE_RUN = OF_THE_MACHINE | {"seed", "evaluate"}
"""What runs that are averaged may differ in."""


def differences(
    first: Mapping[str, Any], second: Mapping[str, Any], ignored: frozenset[str] = OF_THE_RUN, prefix: str = ""
) -> dict[str, tuple[Any, Any]]:
    """The settings that both configurations have with different values, as `section.key` → both values.

    Settings that only one of them has are left out: they belong to another algorithm or to another version.
    """
    found: dict[str, tuple[Any, Any]] = {}
    for key in first.keys() & second.keys():
        name, one, other = f"{prefix}{key}", first[key], second[key]
        if name in ignored:
            continue
        if isinstance(one, Mapping) and isinstance(other, Mapping) and key not in WHOLE:
            found |= differences(one, other, ignored, f"{name}.")
        elif one != other:
            found[name] = (one, other)
    return dict(sorted(found.items()))


def setting(config: Mapping[str, Any], name: str) -> str:
    """The value of `section.key` as YAML on one line, `–` where there is none."""
    value: Any = config
    for part in name.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return "–"
        value = value[part]
    return shown(value)


def shown(value: Any) -> str:
    """A value as YAML on one line."""
    text = yaml.safe_dump(value, default_flow_style=True, width=float("inf"), allow_unicode=True, sort_keys=False)
    return text.removesuffix("...\n").strip()
