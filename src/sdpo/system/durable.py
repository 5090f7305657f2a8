"""Files that outlive a kill and a power cut: written aside, flushed to the disk, renamed into place."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

from safetensors import SafetensorError

WRITE_ERRORS = (OSError, SafetensorError)
"""What writing raises on a full or failing disk; safetensors has a name of its own for it."""

_CHUNK = 2**20


def write_whole(path: Path, text: str) -> None:
    """Write a file so that no reader, and nobody after a power cut, ever sees a part of it."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync(path.parent)


def replace_folder(new: Path, target: Path, aside: Path | None = None) -> None:
    """Put a folder in the place of another, which need not exist.

    No system renames a folder over one that has files. So the old one steps aside first: killed between the two
    renames, `recover_folder` finds it. `aside` is a name for it that nobody else uses; None is `<target>.old`.
    """
    sync_tree(new)
    recover_folder(target, aside)
    aside = aside or _aside(target)
    if target.exists():
        shutil.rmtree(aside, ignore_errors=True)
        target.rename(aside)
    new.rename(target)
    sync(target.parent)
    shutil.rmtree(aside, ignore_errors=True)


def recover_folder(target: Path, aside: Path | None = None) -> None:
    """Undo a `replace_folder` that was killed half-way."""
    aside = aside or _aside(target)
    if not target.exists() and aside.is_dir():
        aside.rename(target)


def sync_tree(folder: Path) -> None:
    """Flush all files of a folder, and the folders themselves, which hold their names."""
    for path in folder.rglob("*"):
        sync(path)
    sync(folder)


def sync(path: Path) -> None:
    """Flush a file or a folder to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256(path: Path) -> str:
    """A file's checksum, in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _aside(target: Path) -> Path:
    return target.with_name(target.name + ".old")
