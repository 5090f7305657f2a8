"""YAML as plain data: no Python objects, and a bound on nesting and repetition."""

from __future__ import annotations

from typing import Any

import yaml

_DEEPEST = 32
_LARGEST = 10**6  # values, with every alias expanded


def dump(data: Any) -> str:
    """Write data as YAML; `parse` reads equal data from the text."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def dump_line(data: Any) -> str:
    """Write data as YAML on one line."""
    text = yaml.dump(
        data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=True, width=float("inf")
    )
    return text.removesuffix("...\n").strip()


class _Dumper(yaml.SafeDumper):
    """Quotes characters that the library treats as line breaks when reading, but not when writing."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = '"' if any(character in text for character in "\r\x85\u2028\u2029\ufeff") else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)


def parse(text: str) -> Any:
    """Read mappings, lists and scalars from YAML.

    Raises:
        ValueError: if the text is not YAML, or nests or repeats itself (by aliases) beyond the bounds.
    """
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error
    except RecursionError as error:
        raise ValueError("it nests too deeply") from error
    pending, count = [(data, 0)], 0
    while pending:
        value, depth = pending.pop()
        count += 1
        if depth > _DEEPEST or count > _LARGEST:
            raise ValueError(f"it nests deeper than {_DEEPEST} levels, or has more than {_LARGEST} values")
        if isinstance(value, dict | list):
            pending += [(inner, depth + 1) for inner in (value.values() if isinstance(value, dict) else value)]
    return data
