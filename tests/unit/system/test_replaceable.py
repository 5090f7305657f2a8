"""Commands replace their own files and empty ones, write to devices, and refuse every other file before they work."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sdpo.errors import UserError
from sdpo.system.replaceable import check_replaceable, holds_json, holds_text

OURS = holds_json(("a", "b"))


@pytest.mark.parametrize("text", ['{"a": 1, "b": 2, "c": 3}', '[{"a": 1, "b": 2}, 3]', ""])
def test_own_and_empty_files_may_be_replaced(tmp_path: Path, text: str) -> None:
    (tmp_path / "x").write_text(text)
    check_replaceable(tmp_path / "x", "--output", OURS)
    check_replaceable(tmp_path / "new", "--output", OURS)
    check_replaceable(Path(os.devnull), "--output", OURS)


@pytest.mark.parametrize("text", ["notes", "{}", '{"a": 1}', "[]", "[3]", "3", "[" * 100_000, "\xff"])
def test_other_files_may_not(tmp_path: Path, text: str) -> None:
    (tmp_path / "x").write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=r"--output .*x cannot be written: the file exists.*Nothing was changed"):
        check_replaceable(tmp_path / "x", "--output", OURS)


@pytest.mark.parametrize("name", ["", "nowhere/x", "x\0", "x" * 5000])
def test_what_is_no_file_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="cannot be written"):
        check_replaceable(tmp_path / name if name else tmp_path, "--output", OURS)


def test_a_mark_in_a_text(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("<p>mark</p>")
    assert holds_text("mark")(tmp_path / "x") and not holds_text("other")(tmp_path / "x")
