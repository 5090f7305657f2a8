"""The hub is asked only where something is missing."""

from __future__ import annotations

from typing import Any

import pytest
import requests

from sdpo import Config
from sdpo.commands.doctor import Finding, examine
from sdpo.commands.doctor.hub import check_hub, to_fetch


def only(findings: Any) -> Finding:
    (found,) = findings
    return found


def test_the_hub_is_asked_only_where_something_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def silent(*arguments: Any, **options: Any) -> None:
        raise requests.ConnectionError("no route")

    monkeypatch.setattr(requests, "head", silent)
    assert only(check_hub({})).status == "ok"
    config = Config.load("pickscore", output_dir="run")
    missing = to_fetch(config, list(config.rewards))
    assert set(missing) == {"model", "pickscore"}
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE" in only(check_hub(missing)).text
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    assert only(check_hub(missing)).status == "FAIL"
    findings = list(examine(config))  # in seconds, without a model
    assert [f.check for f in findings if f.status == "FAIL"] == ["hub"]
    monkeypatch.setattr(requests, "head", lambda *a, **o: None)
    assert only(check_hub(missing)).status == "WARN"
