"""A run's configuration that lacks a setting was written before the setting existed, and keeps what it meant."""

from __future__ import annotations

from typing import Any

import pytest

from sdpo.config import earlier


@pytest.fixture
def one_setting_is_new(monkeypatch: pytest.MonkeyPatch) -> None:
    def rename(data: dict[str, Any]) -> None:
        if data["sample"].get("form") == "old":
            data["sample"]["form"] = "new"

    monkeypatch.setattr(earlier, "ADDED", {"train.added": lambda data: data["sample"]["num_steps"]})
    monkeypatch.setattr(earlier, "CHANGED", [rename])


@pytest.mark.usefixtures("one_setting_is_new")
def test_a_missing_setting_gets_what_the_run_had() -> None:
    stored = {"sample": {"num_steps": 7, "form": "old"}, "train": {}}
    assert earlier.as_meant(stored) == {"sample": {"num_steps": 7, "form": "new"}, "train": {"added": 7}}
    assert stored == {"sample": {"num_steps": 7, "form": "old"}, "train": {}}


@pytest.mark.usefixtures("one_setting_is_new")
def test_a_complete_configuration_stays_as_it_is() -> None:
    stored = {"sample": {"num_steps": 7, "form": "old"}, "train": {"added": None}}
    assert earlier.as_meant(stored) == stored
