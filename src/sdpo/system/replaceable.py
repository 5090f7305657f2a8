"""Files that a command may replace: those that sdpo wrote, as far as their contents tell, and empty ones."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from sdpo.errors import UserError


def check_replaceable(path: Path, option: str, is_ours: Callable[[Path], bool]) -> None:
    """Refuse, before any work is done, to write where nothing can be written or another program's file is.

    Args:
        path: the file to write. A device or a pipe, such as `/dev/stdout`, is nothing to replace.
        option: the option that names the file, for messages.
        is_ours: whether an existing file, which is not empty, is one that the command wrote.

    Raises:
        UserError: if the path is a folder, its folder does not exist, or the file is not to be replaced.
    """
    try:
        with contextlib.suppress(FileNotFoundError):
            path.stat()  # raises for names that no file can have
        if path.is_dir():
            raise UserError(f"{option} {path} cannot be written: it is a folder; name a file")
        if not path.parent.is_dir():
            raise UserError(f"{option} {path} cannot be written: there is no folder {path.parent}")
        if path.is_file() and path.stat().st_size and not is_ours(path):
            raise UserError(
                f"{option} {path} cannot be written: the file exists, and this command did not write it. Nothing was "
                "changed: name another file."
            )
    except (OSError, ValueError) as error:  # ValueError: a name with a null character
        raise UserError(f"{option} {path} cannot be written: {error}") from error


def holds_json(keys: Collection[str]) -> Callable[[Path], bool]:
    """A check for `check_replaceable`: a JSON object, or a list of objects, with these keys."""

    def check(path: Path) -> bool:
        try:
            found: Any = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return False
        first = found[0] if isinstance(found, list) and found else found
        return isinstance(first, dict) and set(keys) <= first.keys()

    return check


def holds_text(mark: str) -> Callable[[Path], bool]:
    """A check for `check_replaceable`: a text file with this mark in it."""
    return lambda path: mark in path.read_text(encoding="utf-8", errors="replace")
