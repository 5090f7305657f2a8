"""Prompts from named sets, text files, JSON-lines files with metadata, or lists."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sdpo.errors import UserError

_SETS = Path(__file__).parent / "assets" / "prompts"


@dataclass(frozen=True)
class Prompt:
    """A prompt with its metadata.

    Attributes:
        text: the prompt.
        metadata: further fields of the prompt in its file, which rewards receive.
    """

    text: str
    metadata: dict[str, Any] = field(default_factory=dict)


def named_sets() -> list[str]:
    """List the names of the prompt sets that come with the package."""
    return sorted(p.stem for p in _SETS.glob("*.txt"))


def load_prompts(source: str | list[str] | list[dict[str, Any]]) -> list[Prompt]:
    """Load prompts.

    Args:
        source: the name of a set; a `.txt` file (one prompt a line; blank lines and lines that begin with `#` are
            skipped); a `.jsonl` file (a JSON object a line, with a `prompt` and any metadata); or a list of strings or
            of such objects.

    Raises:
        UserError: if there is no such set or file, it holds no prompt, or a line cannot be read.
    """
    if isinstance(source, list):
        prompts = [_from_record(item, f"prompt {i}") for i, item in enumerate(source)]
        where = "the list of prompts"
    else:
        path = _SETS / f"{source}.txt" if source in named_sets() else Path(source)
        where = f"the prompt file {path}"
        if not os.path.isfile(path):  # Path.is_file raises for names that are too long for a file
            raise UserError(
                f"prompts: there is no file {source!r}, and no set of that name. "
                f"Sets: {', '.join(named_sets())}; or give a .txt (one prompt a line) or .jsonl file."
            )
        prompts = _read(path)
    if not prompts:
        raise UserError(f"{where} is empty: it needs at least one prompt")
    return prompts


def _read(path: Path) -> list[Prompt]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the prompt file {path} cannot be read as UTF-8 text: {error}") from error
    if path.suffix != ".jsonl":
        return [Prompt(line.strip()) for line in lines if line.strip() and not line.lstrip().startswith("#")]
    prompts = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}:{number}: not a JSON object ({error})") from error
        prompts.append(_from_record(record, f"{path}:{number}"))
    return prompts


def _from_record(record: Any, where: str) -> Prompt:
    """Make a prompt of a string or of an object with a `prompt`; `where` is its place, for messages."""
    text = record.get("prompt") if isinstance(record, dict) else record
    if isinstance(text, str):
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise UserError(f"{where}: the prompt contains a lone surrogate, which is not valid UTF-8; remove it")
        return Prompt(text, {k: v for k, v in record.items() if k != "prompt"} if isinstance(record, dict) else {})
    raise UserError(f'{where}: expected a string or an object like {{"prompt": "a cat", ...}}, got {record!r}')
