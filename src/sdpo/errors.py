"""Errors that the user can fix: the command line shows them without a traceback and exits with code 2."""

from __future__ import annotations

import difflib
from collections.abc import Collection


class UserError(Exception):
    """A mistake or failure that the user can fix; the message says what is wrong, where, and what to do."""


class RewardError(UserError):
    """A reward raised, or returned the wrong length, a wrong type, or values that are not finite."""


class DivergenceError(UserError):
    """A loss, gradient, log-probability, weight or image is not finite."""


class LostProcessError(UserError):
    """Another process of the run has ended."""


def nearest(name: str, known: Collection[str]) -> str:
    """The end of a message about an unknown name: a question after the most similar name, else all known names.

    Args:
        name: the unknown name.
        known: the known names.
    """
    found = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f" (did you mean {found[0]!r}?)" if found else f" (known: {', '.join(sorted(known))})"


def cause(error: BaseException) -> str:
    """The first line of another library's error, or the error's type where its message is empty."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
