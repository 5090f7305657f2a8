"""Named variants of a preset: which overrides a name in a comparison stands for."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sdpo.config.load import DEFAULT_PRESET, PRESETS, WHOLE, preset_names, read_mapping
from sdpo.config.plain_yaml import dump_line
from sdpo.errors import UserError, nearest
from sdpo.method.algorithms import ALGORITHMS

VARIANTS = PRESETS / "variants"


def load_variants(source: str | None, file: Path | None) -> dict[str, Mapping[str, Any]]:
    """Return the variants of a preset and of a user's file: name → overrides.

    Args:
        source: name of a preset or path of a YAML file; None is the preset `emoji`. Only presets have variants.
        file: the user's file; its variants replace the preset's of the same name.

    Raises:
        UserError: if a file cannot be read, a name is not valid, or a variant is not a mapping.
    """
    preset = DEFAULT_PRESET if source is None else source
    files = [VARIANTS / f"{preset}.yaml"] if preset in preset_names() else []
    variants: dict[str, Mapping[str, Any]] = {}
    for path in [*(f for f in files if f.is_file()), *([file] if file else [])]:
        for name, settings in read_mapping(path).items():
            if not re.fullmatch(r"\w[\w.+-]*", str(name)):
                raise UserError(
                    f"{path}: {name!r} is not a valid name of a variant: use letters, digits and the characters _ . + -"
                )
            if not isinstance(settings, Mapping):
                raise UserError(
                    f"{path}: {name} should be a mapping of overrides, such as {{train: {{learning_rate: 1.0e-4}}}}"
                )
            variants[str(name)] = settings
    return variants


def name_overrides(name: str, variants: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the overrides `section.key=value` that an algorithm's or variant's name stands for.

    Args:
        name: the name.
        variants: the variants by name; one with an algorithm's name holds settings of that algorithm.

    Raises:
        UserError: if there is no algorithm and no variant of that name.
    """
    own = ":" in name  # a dotted path to the user's own algorithm
    if name not in variants and name not in ALGORITHMS and not own:
        known = [*ALGORITHMS, *(v for v in variants if v not in ALGORITHMS)]
        hint = nearest(name, known) if nearest(name, known).startswith(" (did") else ""
        raise UserError(
            f"--algorithms: there is no algorithm or variant {name!r}{hint}. Known names: {', '.join(known)}. "
            "Add your own by --variants FILE."
        )
    flat: dict[str, Any] = {"algorithm.name": name} if name in ALGORITHMS or own else {}
    for key, value in variants.get(name, {}).items():
        nested = isinstance(value, Mapping) and key not in WHOLE
        flat |= {f"{key}.{inner}": v for inner, v in value.items()} if nested else {key: value}
    return [f"{key}={dump_line(value)}" for key, value in flat.items()]
