"""The command line: the type of the fixture `sdpo`, and the ways in which a command may end."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

Result = subprocess.CompletedProcess[str]
Run = Callable[..., Result]


def succeeded(result: Result) -> Result:
    """Assert that a command ended with exit code 0."""
    assert result.returncode == 0, (result.stdout, result.stderr)
    return result


def failed(result: Result, *words: str) -> str:
    """Assert that a command ended with exit code 2 and a message with all the words, without a traceback.

    Returns:
        The message.
    """
    assert result.returncode == 2, (result.returncode, result.stdout, result.stderr)
    assert "Traceback" not in result.stdout + result.stderr
    for word in words:
        assert word in result.stderr, result.stderr
    return result.stderr
