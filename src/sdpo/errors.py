"""Errors that are the user's to mend: the command line shows them without a traceback and exits with code 2."""

from __future__ import annotations

import difflib
from collections.abc import Collection


class UserError(Exception):
    """Says what is wrong, where, and how to fix it."""


class RewardError(UserError):
    """A reward raised, or returned the wrong length, a wrong type, or values that are not finite."""


class DivergenceError(UserError):
    """A loss, gradient or log-probability stopped being finite."""


class LostProcessError(UserError):
    """Another process of the run has ended."""


def nearest(name: str, known: Collection[str]) -> str:
    """The end of a message about an unknown name: the nearest known one, or all of them."""
    found = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f" (did you mean {found[0]!r}?)" if found else f" (known: {', '.join(sorted(known))})"


def cause(error: BaseException) -> str:
    """The first line of another library's error, or the error's type where its message is empty."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
