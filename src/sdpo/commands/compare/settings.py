"""What the settings of compared runs may differ in, and how they are shown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sdpo.config import plain_yaml
from sdpo.config.differences import RESUMABLE

# What two runs of one experiment may differ in: where they ran and what they kept.
OF_THE_MACHINE = frozenset(RESUMABLE) - {"evaluate", "stop_when"}
OF_THE_RUN = OF_THE_MACHINE | {"seed", "evaluate"}
"""What runs that are averaged may differ in."""


def setting(config: Mapping[str, Any], name: str) -> str:
    """The value of `section.key` as YAML on one line, `–` where there is none."""
    value: Any = config
    for part in name.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return "–"
        value = value[part]
    return plain_yaml.dump_line(value)
