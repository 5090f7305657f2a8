"""Files that survive a kill and a power cut: written under another name, flushed to the disk, renamed into place."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

from safetensors import SafetensorError

from sdpo.system.platform import flush_to_disk

WRITE_ERRORS = (OSError, SafetensorError)
"""The errors of a write to a full or failing disk; safetensors has an error of its own."""

_CHUNK = 2**20  # bytes


def write_whole(path: Path, text: str) -> None:
    """Write a file so that it is complete whenever it is read, even after a power cut."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    flush_to_disk(path.parent)


def replace_folder(new: Path, target: Path, aside: Path | None = None) -> None:
    """Put a folder in the place of another one.

    No operating system renames a folder over one that has files. The old folder is therefore renamed first; if the
    process is killed between the two renames, `recover_folder` restores it.

    Args:
        new: the folder to move.
        target: its new path; an existing folder there is deleted.
        aside: a temporary path for the old folder that nobody else uses; None is `<target>.old`.
    """
    sync_tree(new)
    recover_folder(target, aside)
    aside = aside or _aside(target)
    if target.exists():
        shutil.rmtree(aside, ignore_errors=True)
        target.rename(aside)
    new.rename(target)
    flush_to_disk(target.parent)
    shutil.rmtree(aside, ignore_errors=True)


def recover_folder(target: Path, aside: Path | None = None) -> None:
    """Undo a `replace_folder` that was killed between its renames.

    Args:
        target: the folder's path.
        aside: the temporary path that `replace_folder` was given.
    """
    aside = aside or _aside(target)
    if not target.exists() and aside.is_dir():
        aside.rename(target)


def sync_tree(folder: Path) -> None:
    """Flush a folder to the disk with all its files and folders."""
    for path in folder.rglob("*"):
        flush_to_disk(path)
    flush_to_disk(folder)


def sha256(path: Path) -> str:
    """The SHA-256 checksum of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _aside(target: Path) -> Path:
    return target.with_name(target.name + ".old")
