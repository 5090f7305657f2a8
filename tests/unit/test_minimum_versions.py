"""The oldest versions that the package accepts are those that `make test-minimum` installs."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from helpers.paths import REPOSITORY

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]


def pinned(file: str) -> dict[str, tuple[int, ...]]:
    """The versions in a file of constraints, by the package's name in lower case."""
    lines = re.findall(r"^([\w.-]+)==([\d.]+)", (REPOSITORY / file).read_text(), re.MULTILINE)
    return {name.lower(): version(text) for name, text in lines}


def version(text: str) -> tuple[int, ...]:
    numbers = [int(number) for number in text.split(".")]
    return (*numbers, *[0] * (3 - len(numbers)))


def test_lower_bounds_are_the_minimum_that_is_tested() -> None:
    bounds = dict(re.fullmatch(r"([\w.-]+)>=([\d.]+)", text).groups() for text in PROJECT["dependencies"])  # type: ignore[union-attr]
    minimum, current = pinned("constraints-minimum.txt"), pinned("constraints.txt")
    assert {name.lower(): version(text) for name, text in bounds.items()}.items() <= minimum.items()
    assert all(minimum[name] <= current[name] for name in minimum)


def test_the_makefile_refuses_an_older_python_by_one_message(tmp_path: Path) -> None:
    older = tmp_path / "python3.10"
    older.write_text(
        f"#!/bin/sh\nexec {sys.executable} -c 'import sys; sys.version_info = (3, 10); exec(sys.argv[2])' \"$@\"\n"
    )
    older.chmod(0o755)
    for target in ("demo", "test-minimum"):
        done = subprocess.run(
            ["make", "--silent", target, f"PYTHON={older}", f"VENV={tmp_path}/a", f"VENV_MINIMUM={tmp_path}/b"],
            cwd=REPOSITORY, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 2 and done.stderr.startswith("sdpo needs Python 3.11 or newer"), done.stderr
        assert not (tmp_path / "a").exists() and not (tmp_path / "b").exists()


@pytest.mark.parametrize("python", [(3, 11), (3, 12), (3, 13)])
def test_the_promised_pythons_are_those_that_resolve(python: tuple[int, int]) -> None:
    assert PROJECT["requires-python"] == ">=3.11"
    text = f"{python[0]}.{python[1]}"
    assert f"Programming Language :: Python :: {text}" in PROJECT["classifiers"]
    assert f'"{text}"' in (REPOSITORY / ".github/workflows/test.yml").read_text()
