"""The metadata in the header of a safetensors file, which other programs show and select files by."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

_ALIGNMENT = 8  # bytes: the weights begin at a multiple of it


def add_metadata(file: Path, metadata: Mapping[str, str]) -> None:
    """Add entries to a safetensors file's metadata; the weights stay as they are.

    The entries are sorted. The library's own writer puts them in an order that differs from process to process, and
    equal exports would be different files.

    Args:
        file: the file, which is replaced.
        metadata: the entries by name; they replace earlier ones of the same name.
    """
    data = file.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    entries = header.pop("__metadata__", {}) | dict(metadata)
    text = json.dumps(
        {"__metadata__": dict(sorted(entries.items())), **header}, ensure_ascii=False, separators=(",", ":")
    ).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    new = file.with_name(f"{file.name}.tmp")
    new.write_bytes(len(text).to_bytes(8, "little") + text + data[end:])
    new.replace(file)  # weights that were loaded from the file are views of it, and keep the old one
