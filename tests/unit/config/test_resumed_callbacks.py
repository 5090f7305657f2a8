"""Callbacks may change on resume: those of the earlier call need not exist any more."""

from __future__ import annotations

from pathlib import Path

import pytest

from sdpo import Config
from sdpo.config.differences import check_same_run
from sdpo.errors import UserError


def test_a_callback_that_is_gone_does_not_keep_a_run_from_being_resumed(tmp_path: Path) -> None:
    config = Config.load("emoji")
    file = tmp_path / "config.yaml"
    file.write_text(config.to_yaml().replace("callbacks: []", "callbacks: ['module_that_is_gone:Callback']"))
    assert "module_that_is_gone" in file.read_text()
    check_same_run(config, file)
    with pytest.raises(UserError, match="seed: 42 → 43"):
        check_same_run(Config.load("emoji", seed=43), file)
