"""Messages to the user: the logger `sdpo`, and the form that its messages have on the command line."""

from __future__ import annotations

import functools
import logging
import os
import sys

logger = logging.getLogger("sdpo")
"""The logger of the whole package. In a user's own program Python shows its warnings by default."""


def is_main_process() -> bool:
    """Whether this process is the first of its launch, which alone prints and writes; a process by itself is."""
    return os.environ.get("RANK", "0") == "0"


@functools.cache
def warn_once(text: str) -> None:
    """Show a warning that several parts of the program may come upon, the first time alone."""
    logger.warning("%s", text)


class _StandardError(logging.Handler):
    """Prints to standard error as it is at the time of the message, so that a replaced `sys.stderr` is used."""

    def emit(self, record: logging.LogRecord) -> None:
        level = "" if record.levelno == logging.INFO else f"{record.levelname.lower()}: "
        print(f"sdpo: {level}{record.getMessage()}", file=sys.stderr, flush=True)


def configure() -> None:
    """Show messages on standard error as `sdpo: warning: …`; further calls change nothing."""
    if not any(isinstance(handler, _StandardError) for handler in logger.handlers):
        logger.addHandler(_StandardError())
        logger.setLevel(logging.INFO)
