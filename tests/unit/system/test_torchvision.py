"""A torchvision that cannot be imported."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from helpers.command_line import Run, failed


def test_a_broken_torchvision_is_named_with_its_fix(sdpo: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text(
        "raise RuntimeError('operator torchvision::nms does not exist')"
    )
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("torchvision", None)
    failed(sdpo("sample", "emoji", "cat"), "pip uninstall torchvision", "nms")
