"""Text and tables on standard output, and files that options name; only the main process of a launch writes any."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from sdpo.errors import UserError
from sdpo.system.log import is_main_process

if TYPE_CHECKING:
    from rich.console import Console, RenderableType


def say(text: str, end: str = "\n") -> None:
    """Print text; ends the process with code 1 if the reader, such as `head`, has closed the pipe."""
    if not is_main_process():
        return
    try:
        print(text, end=end, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more when it ends
        raise SystemExit(1) from None


def console() -> Console:
    """Create a console that prints text as it is: prompts may hold [brackets] and :colons:."""
    from rich.console import Console

    return Console(highlight=False, markup=False, emoji=False, soft_wrap=True, quiet=not is_main_process())


def show(table: RenderableType) -> None:
    """Print a table."""
    console().print(table)


def write(path: Path, text: str) -> None:
    """Write the file that the option `--output` names.

    Raises:
        UserError: if the file cannot be written.
    """
    if not is_main_process():
        return
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"--output {path} cannot be written: {error}") from error
