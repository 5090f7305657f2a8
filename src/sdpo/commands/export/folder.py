"""The folder of an export: it appears when all of it has been written, and replaces only an earlier export."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from sdpo.errors import UserError
from sdpo.system.durable import recover_folder, replace_folder

MARK = "sdpo_export.json"
"""The file that lists what an export wrote."""


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A context with a temporary folder to write in, which becomes `folder` when the context ends without an error.

    Args:
        folder: a path where nothing exists, or the folder of an earlier export, which is replaced.

    Yields:
        The temporary folder.

    Raises:
        UserError: if the folder holds anything that an export did not write, or cannot be written.
    """
    old = folder.with_name(f".{folder.name}.export-old")  # `<folder>.old` may be the user's
    try:
        recover_folder(folder, old)
        _check_free(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=".export-", dir=folder.parent))
    except OSError as error:
        raise UserError(f"the export cannot be written to {folder}: {error}") from error
    place = aside / folder.name
    try:
        place.mkdir()
        yield place
        files = sorted(str(p.relative_to(place)) for p in place.rglob("*") if p.is_file())
        (place / MARK).write_text(json.dumps({"files": [*files, MARK]}, indent=1) + "\n", encoding="utf-8")
        replace_folder(place, folder, old)
    except OSError as error:
        raise UserError(f"the export cannot be written to {folder}: {error}") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _check_free(folder: Path) -> None:
    """Reject a folder with files that an export did not write.

    Raises:
        UserError: naming the first of them.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UserError(f"-o {folder} is a file: name a new folder")
    present = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    foreign = sorted(present - _written(folder / MARK))
    if foreign:
        raise UserError(
            f"-o {folder} holds {foreign[0]}, which no export wrote: nothing was changed; name a new folder"
        )


def _written(mark: Path) -> set[str]:
    """The files that an earlier export lists; empty where the list is missing or damaged."""
    try:
        return set(map(str, json.loads(mark.read_text(encoding="utf-8"))["files"]))
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return set()
