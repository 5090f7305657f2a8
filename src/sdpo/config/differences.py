"""The differences between two configurations, and whether one can resume the run of the other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sdpo.config.earlier import as_meant
from sdpo.config.load import WHOLE, read_source
from sdpo.config.schema import Config
from sdpo.errors import UserError

RESUMABLE = (
    "output_dir",
    "device",
    "evaluate",
    "checkpoint",
    "stop_when",
    "trackers",
    "callbacks",
    "scoring",
    "model.text_encoders",
    "sample.micro_batch",
    "train.micro_batch",
    "train.gradient_checkpointing",
    "train.on_nonfinite",
)
"""Sections and settings that may change when a run is resumed: none changes what the next epoch computes."""

_OWN = ("model.dtype", "sample.guidance_scale")  # null until the model is known: then it is the model's own

_NOT_SET = "(not set)"


def check_same_run(config: Config, stored_file: Path) -> None:
    """Refuse to resume a run with a configuration that would have computed something else.

    Args:
        config: the configuration to resume with.
        stored_file: the run's `config.yaml`.

    Raises:
        UserError: naming each setting that differs, and the settings that may change.
    """
    stored = _read_stored(stored_file)
    # A learning rate that decays towards the last epoch depends on the number of epochs.
    resumable = [*RESUMABLE, *(["epochs"] if config.train.lr_schedule == "constant" else [])]
    changed = [
        f"  {key}: {old} → {new}"
        for key, (old, new) in differences(stored, config.model_dump(mode="json"), frozenset(resumable)).items()
    ]
    if not changed:
        return
    more = ""
    if "epochs" not in resumable and config.lora is not None:
        more = (
            "\nA run with a decaying learning rate cannot be extended; to train on, start a new run from its LoRA: "
            f"lora.path={stored_file.parent / 'lora'}"
        )
    raise UserError(
        "\n".join([f"{stored_file.parent} holds a run of another configuration:", *changed])
        + "\nRepeat the command that started the run to resume it, or name another --output-dir. Settings that may "
        f"change on resume: {', '.join(resumable)}.{more}"
    )


def _read_stored(file: Path) -> dict[str, Any]:
    """The configuration of a run; a setting that is missing was added since (`config/earlier.py`)."""
    if not file.is_file():
        raise UserError(
            f"{file.parent} holds epochs or weights, but not the {file.name} of their run: restore that file, or "
            "name another --output-dir."
        )
    try:
        data = as_meant(read_source(file))
        data.pop("callbacks", None)  # they may change on resume, and the earlier classes may be gone
        return Config.parse(data).model_dump(mode="json")
    except UserError as error:
        raise UserError(f"{file} is not a valid run configuration; cannot resume: {error}") from error


def differences(
    first: Mapping[str, Any], second: Mapping[str, Any], ignored: frozenset[str]
) -> dict[str, tuple[Any, Any]]:
    """Compare two configurations setting by setting.

    A setting that one of them lacks has its default there, as it was added since; without a default it is `(not set)`.
    Settings that only one of two algorithms has are left out. Two objects of different classes, such as credit rules,
    differ as a whole. A null that stands for the model's own value differs from nothing, as that value is not known
    here.

    Args:
        first: a configuration, as `config.yaml` holds it.
        second: a configuration, as `config.yaml` holds it.
        ignored: sections and settings that may differ.

    Returns:
        `section.key` → both values, sorted by key.
    """
    found = dict(_differences(first, second, ignored, "", Config().model_dump(mode="json")))
    return dict(sorted(found.items()))


def _differences(
    first: Mapping[str, Any], second: Mapping[str, Any], ignored: frozenset[str], prefix: str, defaults: Any
) -> Iterator[tuple[str, tuple[Any, Any]]]:
    for key in first.keys() & second.keys() if prefix == "algorithm." else first.keys() | second.keys():
        name, default = f"{prefix}{key}", defaults.get(key, _NOT_SET) if isinstance(defaults, dict) else _NOT_SET
        one, other = first.get(key, default), second.get(key, default)
        if name in ignored or (name in _OWN and None in (one, other)):
            continue
        if isinstance(one, Mapping) and isinstance(other, Mapping) and not _is_whole(key, prefix, one, other):
            yield from _differences(one, other, ignored, f"{name}.", default)
        elif one != other:
            yield name, (one, other)


def _is_whole(key: str, prefix: str, one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two mappings are compared as wholes: weights by name, and objects of different classes."""
    within = prefix in ("algorithm.", "advantage.")
    return key in WHOLE or (within and one.get("name") != other.get("name"))
