"""Objects by name: registered ones, the user's own, and what is said where there is none."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest

from sdpo.errors import UserError
from sdpo.system.dotted_path import resolve

REGISTRY = {"pi": math.pi, "root": "math:sqrt", "broken": "sdpo_has_no_such_module:thing"}


def find(name: str) -> object:
    return resolve(name, REGISTRY, "number", "my_module:my_number")


def test_registered_objects_and_registered_paths() -> None:
    assert find("pi") == math.pi and find("root") is math.sqrt
    with pytest.raises(UserError, match="'broken' cannot be imported"):
        find("broken")


def test_both_forms_of_a_dotted_path() -> None:
    assert find("os.path:join") is find("os.path.join")
    assert find("pathlib:Path.home") == Path.home


def test_the_working_directory_can_be_imported_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in_the_working_directory.py").write_text("here = 7\n")
    assert find("in_the_working_directory:here") == 7


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("pie", ["there is no number 'pie' (did you mean 'pi'?)", "such as my_module:my_number"]),
        ("math:tau_2", ["'math:tau_2' cannot be imported (AttributeError"]),
        ("..math:pi", ["cannot be imported (TypeError"]),
        (":pi", ["cannot be imported (ValueError"]),
        ("math:", ["cannot be imported (AttributeError"]),
    ],
)
def test_names_of_nothing_are_refused(name: str, words: list[str]) -> None:
    with pytest.raises(UserError) as error:
        find(name)
    assert all(word in str(error.value) for word in words), error.value
