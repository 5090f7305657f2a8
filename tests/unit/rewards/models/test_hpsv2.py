"""The cleaning of prompts for HPSv2."""

from __future__ import annotations

import sys

import pytest

from sdpo.rewards.models import hpsv2


def test_a_missing_ftfy_is_warned_of_once_and_for_prompts_that_it_could_change(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "ftfy", None)
    hpsv2._warn_of_missing_ftfy.cache_clear()
    assert hpsv2.clean_text("a cat") == "a cat" and not caplog.records
    for prompt in ("une chèvre", "ein Käfer"):
        assert hpsv2.clean_text(prompt) == prompt
    assert [record.getMessage().split(",")[0] for record in caplog.records] == ["hpsv2: ftfy is not installed"]
