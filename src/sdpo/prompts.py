"""Prompts from named sets, text files, JSON and CSV files with metadata, or lists."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sdpo.errors import UserError
from sdpo.system.log import is_main_process, warn_once

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
    r"""Load prompts.

    Args:
        source: the name of a set, a file, or a list of strings or of objects with a `prompt` and any metadata. The
            ending of a file's name, in any case, says how it is read, always as UTF-8:
            `.txt`: one prompt a line; blank lines are skipped, and lines that begin with `#`, with a warning that
            counts them. `.jsonl`: a string or an object a line. `.json`: a list of strings or of objects. `.csv`: a
            first line of names, one of them `prompt`; the other columns are metadata. Lines end at `\n`, which a `\r`
            may precede, and at no other character.

    Raises:
        UserError: if there is no such set or file, the file's ending is another one, it holds no prompt, or a prompt
            cannot be read.
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
                f"Sets: {', '.join(named_sets())}; or give a {_ENDINGS} file, or a list of prompts."
            )
        prompts = _read(path)
    if not prompts:
        raise UserError(f"{where} is empty: it needs at least one prompt")
    return prompts


def _read(path: Path) -> list[Prompt]:
    """Read a file by the reader of its ending."""
    if path.suffix.lower() not in _READERS:
        raise UserError(
            f"prompts: {path} has the ending {path.suffix!r}, which says nothing about how prompts lie in it: name a "
            f"{_ENDINGS} file"
        )
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the prompt file {path} cannot be read as UTF-8 text: {error}") from error
    return _READERS[path.suffix.lower()](text, path)


def _lines(text: str) -> list[str]:
    r"""The lines of a text, which end at `\n` alone; where files were joined, a byte-order mark may begin any line."""
    return [line.removesuffix("\r").removeprefix("\ufeff") for line in text.split("\n")]


def _from_txt(text: str, path: Path) -> list[Prompt]:
    """Read one prompt a line, and say how many lines were skipped as comments."""
    prompts, comments = [], 0
    for number, line in enumerate(_lines(text), start=1):
        if line.lstrip().startswith("#"):
            comments += 1
        elif line.strip():
            prompts.append(Prompt(_checked(line.strip(), f"{path}:{number}")))
    if is_main_process() and path.parent != _SETS:
        if comments:
            warn_once(
                f"{path}: {comments} of its lines begin with # and are skipped as comments; write a prompt that begins "
                "with # in a .jsonl file"
            )
        if (joined := sum("\r" in prompt.text for prompt in prompts)) > 0:
            warn_once(
                rf"{path}: {joined} of its prompts have \r inside, which ends no line: if it is meant to, save the "
                r"file with \n"
            )
    return prompts


def _from_jsonl(text: str, path: Path) -> list[Prompt]:
    """Read a string or an object a line."""
    places = ((line, f"{path}:{number}") for number, line in enumerate(_lines(text), start=1))
    return [_from_record(_parsed(line, where), where) for line, where in places if line.strip()]


def _from_json(text: str, path: Path) -> list[Prompt]:
    """Read a list of strings or of objects."""
    records = _parsed(text, str(path)) if text.strip() else []
    if not isinstance(records, list):
        raise UserError(
            f'{path}: expected a list of strings or of objects like {{"prompt": "a cat", ...}}, got a '
            f"{type(records).__name__}"
        )
    return [_from_record(record, f"{path}: prompt {number}") for number, record in enumerate(records, start=1)]


def _parsed(text: str, where: str) -> Any:
    """The value of a JSON text."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{where}: not a JSON object ({error}). A .jsonl file has one object a line, a .json file one list of them."
        ) from error


def _from_csv(text: str, path: Path) -> list[Prompt]:
    """Read a table whose first line names the columns; the cells beside `prompt` are metadata, as strings."""
    prompts = []
    try:
        reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        names = list(reader.fieldnames or [])
        if text.strip() and (names.count("prompt") != 1 or len(set(names)) < len(names)):
            raise UserError(
                f"{path}: its first line must name each column once, and one of them prompt; it has "
                f"{', '.join(names) or 'nothing'}"
            )
        for row in reader:
            where = f"{path}:{reader.line_num}"
            if None in row or None in row.values():
                raise UserError(f"{where}: the row has not one cell for each of the columns {', '.join(names)}")
            if not row["prompt"].strip():
                raise UserError(f"{where}: the prompt is empty")
            prompts.append(_from_record(row, where))
    except csv.Error as error:
        raise UserError(f"{path} cannot be read as a CSV file: {error}") from error
    return prompts


def _from_record(record: Any, where: str) -> Prompt:
    """Make a prompt of a string or of an object with a `prompt`; `where` is its place, for messages."""
    text = record.get("prompt") if isinstance(record, dict) else record
    if isinstance(text, str):
        metadata = {k: v for k, v in record.items() if k != "prompt"} if isinstance(record, dict) else {}
        return Prompt(_checked(text, where), metadata)
    raise UserError(f'{where}: expected a string or an object like {{"prompt": "a cat", ...}}, got {record!r}')


def _checked(text: str, where: str) -> str:
    """The text of a prompt, without characters that no text has."""
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise UserError(f"{where}: the prompt contains a lone surrogate, which is not valid UTF-8; remove it")
    if "\0" in text:
        raise UserError(
            f"{where}: the prompt contains a null character; remove it, or save the file as UTF-8 if it is UTF-16"
        )
    return text


_READERS: dict[str, Callable[[str, Path], list[Prompt]]] = {
    ".txt": _from_txt,
    ".jsonl": _from_jsonl,
    ".json": _from_json,
    ".csv": _from_csv,
}
_ENDINGS = f"{', '.join(list(_READERS)[:-1])} or {list(_READERS)[-1]}"
