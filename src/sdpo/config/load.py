"""Reading a configuration: presets and YAML files, overrides `section.key=value`, and what is wrong with them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from sdpo.config import plain_yaml
from sdpo.config.named import NamedError
from sdpo.errors import UserError, nearest

PRESETS = Path(__file__).parents[1] / "presets"
DEFAULT_PRESET = "emoji"
DEFAULT_ALGORITHM = "sdpo"
"""The algorithm of a configuration that sets fields of the section `algorithm` without its name."""
WHOLE = {"rewards"}
"""Mappings that an override replaces as a whole: their keys are names, not settings."""

# Overrides that name an object are applied before those that set the object's fields, wherever the user wrote them.
_NAMES = (
    ("algorithm=", "algorithm.name="),
    ("algorithm.credit=", "algorithm.reward_plan=", "advantage.normalizer="),
)


def preset_names() -> list[str]:
    """The names of the presets that come with the package."""
    return sorted(p.stem for p in PRESETS.glob("*.yaml"))


def preset_summary(name: str) -> str:
    """The first comment line of a preset."""
    return (PRESETS / f"{name}.yaml").read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")


def read_source(source: str | Path) -> dict[str, Any]:
    """Read a preset or a YAML file.

    Args:
        source: a preset's name, or a path.

    Raises:
        UserError: if there is no such preset or file, or the file cannot be read.
    """
    path = PRESETS / f"{source}.yaml" if str(source) in preset_names() else Path(source)
    if not os.path.isfile(path):  # Path.is_file raises for names that no file can have
        raise UserError(
            f"there is no preset {str(source)!r}{nearest(str(source), preset_names())} and no such file: "
            "give a preset or a YAML file"
        )
    return read_mapping(path)


def read_mapping(path: Path) -> dict[str, Any]:
    """Read a YAML file that holds a mapping; an empty file is an empty mapping.

    Raises:
        UserError: if the file cannot be read, or holds something else.
    """
    try:
        data = plain_yaml.parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as YAML: {error}") from error
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise UserError(f"{path} must hold a mapping of keys to values, not a {type(data).__name__}")
    return data


def parse_assignment(text: str, what: str, example: str = "train.learning_rate=3e-5") -> tuple[str, Any]:
    """Split `key=value` into the key and the value, which is YAML.

    Args:
        text: the assignment.
        what: the kind of assignment, for messages: "override".
        example: an assignment of that kind, for messages.

    Raises:
        UserError: if the text is not an assignment, or its value is not YAML.
    """
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise UserError(f"{what} {text!r}: expected key=value, such as {example}")
    try:
        return key, plain_yaml.parse(value)
    except ValueError as error:
        raise UserError(f"{what} {text!r}: the value is not YAML: {error}") from error


def split_words(words: Sequence[str]) -> tuple[str | None, list[str]]:
    """Split the words of a command line into a preset or file, None if there is none, and overrides.

    Raises:
        UserError: if several presets or files are named.
    """
    sources = [w for w in words if "=" not in w]
    if len(sources) > 1:
        raise UserError(
            f"expected one preset or file, got {', '.join(sources)}. Overrides look like section.key=value, without "
            "spaces around =, and in quotes where the value has some: 'rewards={colorfulness: 1.0}'"
        )
    return sources[0] if sources else None, [w for w in words if "=" in w]


def merge(source: str | Path | None, overrides: Sequence[str], values: Mapping[str, Any]) -> dict[str, Any]:
    """Apply overrides to a preset or YAML file; nothing is validated.

    Args:
        source: a preset's name or a YAML file; None is the preset `emoji`.
        overrides: texts `section.key=value`, the value in YAML.
        values: sections or settings by name, applied last.

    Raises:
        UserError: if there is no such preset or file, or an override is not an assignment.
    """
    data = read_source(source if source is not None else DEFAULT_PRESET)
    for override in sorted(overrides, key=_rank):
        _apply(data, override)
    for key, value in values.items():
        both = isinstance(value, dict) and isinstance(data.get(key), dict) and key not in WHOLE
        other = key == "algorithm" and isinstance(value, dict) and _names_another(data, value.get("name"))
        data[key] = {**data[key], **value} if both and not other else value
    return data


def _rank(override: str) -> int:
    return next((rank for rank, names in enumerate(_NAMES) if override.startswith(names)), len(_NAMES))


def _apply(data: dict[str, Any], override: str) -> None:
    key, value = parse_assignment(override, "override")
    *sections, last = key.split(".")
    if key == "algorithm.name" and _names_another(data, value):
        data["algorithm"] = {}  # the settings belong to another algorithm
    target = data
    for section in sections:
        inner = target.get(section)
        if isinstance(inner, str):  # a named object without its fields
            target[section] = {"name": inner}
        elif not isinstance(inner, dict):
            target[section] = {}
        target = target[section]
    target[last] = value


def _names_another(data: dict[str, Any], name: Any) -> bool:
    """Whether an override names another algorithm than the one whose settings `data` has."""
    section = data.get("algorithm", {})
    return name is not None and name != (
        section.get("name", DEFAULT_ALGORITHM) if isinstance(section, dict) else section
    )


def explain(error: ValidationError, model: type[BaseModel]) -> str:
    """All mistakes of a configuration, one a line.

    Args:
        error: raised by the validation.
        model: the configuration's class, whose keys are suggested where one is unknown.
    """
    lines = [line for details in error.errors() for line in _explain(details, model)]
    return "config: " + "\n        ".join(lines)


def _explain(error: Any, model: type[BaseModel]) -> Iterator[str]:
    """One validation error as sentences, with the nearest key where one is unknown."""
    location = [str(part) for part in error["loc"]]
    where = ".".join(location)
    if error["type"] == "extra_forbidden":
        yield f"unknown key {where!r}{nearest(location[-1], _keys(location[:-1], model))}"
    elif error["type"] == "value_error":
        reason = error["ctx"]["error"]
        for place, message in reason.problems if isinstance(reason, NamedError) else [("", str(reason))]:
            yield _placed(".".join(filter(None, [where, place])), message)
    else:
        form = {"list_type": "; write [1, 2, 4]", "dict_type": "; write {name: value}"}.get(error["type"], "")
        yield f"{where}: {error['msg']}, got {error['input']!r}{form}"


def _placed(where: str, message: str) -> str:
    """A message with its place in the configuration, unless it begins with that itself."""
    return message if not where or message.startswith(f"{where}.") else f"{where}: {message}"


def _keys(sections: list[str], model: type[BaseModel]) -> list[str]:
    """The legal keys of a section."""
    for section in (s for s in sections if not s.isdigit()):  # a number is a place in a list of sections
        annotation = model.model_fields[section].annotation
        candidates = [annotation, *get_args(annotation)]
        model = next(c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel))
    return list(model.model_fields)
