"""Folders of the repository, and where a child process imports from."""

from __future__ import annotations

import os
from pathlib import Path

TESTS = Path(__file__).parents[1]
REPOSITORY = TESTS.parent


def import_path(*folders: Path) -> str:
    """The value of PYTHONPATH with which a child process imports from these folders too."""
    return os.pathsep.join([*map(str, folders), *filter(None, [os.environ.get("PYTHONPATH")])])
