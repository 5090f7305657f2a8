"""A run's configuration that lacks a setting was written before the setting existed, and keeps what it meant."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from sdpo import Config
from sdpo.config import earlier
from sdpo.config.differences import check_same_run
from sdpo.errors import UserError


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


@pytest.mark.parametrize(
    ("algorithm", "meant", "accumulated"),
    [
        ({"name": "sdpo"}, {"name": "sdpo"}, None),
        ({"name": "ddpo", "branches": 2}, {"name": "ddpo", "branches": 2}, 1),
        ({"name": "d3po", "beta": 0.1}, {"name": "d3po", "beta": 0.1, "clip_range": 0.0}, 1),
        ({"name": "grpo"}, {"name": "grpo", "unbiased_std": False}, 1),
        ({"name": "prdp", "clip_range": 0.02}, {"name": "rebel", "clip_range": 0.02}, None),
    ],
)
def test_what_the_runs_of_earlier_versions_were(
    algorithm: dict[str, Any], meant: dict[str, Any], accumulated: int | None
) -> None:
    old = {"algorithm": algorithm, "train": {"batch_size": 8}, "sample": {"eta": 0.5, "noise_form": "flow_grpo"}}
    found = earlier.as_meant(old)
    assert found["algorithm"] == meant
    assert found["train"] == {"batch_size": 8, "accumulate_steps": accumulated}
    assert found["sample"]["noise_form"] == "flow_sde" and found["evaluate"]["eta"] == 0.5
    now = {**old, "train": {"batch_size": 8, "accumulate_steps": None}, "evaluate": {"eta": None}}
    assert earlier.as_meant(now) == now, "a run of this version means what it says"


@pytest.mark.parametrize("name", ["ddpo", "d3po", "grpo", "prdp"])
def test_the_run_of_an_earlier_version_is_not_resumed_as_something_else(name: str, tmp_path: Path) -> None:
    config = Config.load("aesthetic", [f"algorithm={name}"])
    stored = yaml.safe_load(config.to_yaml())
    del stored["train"]["accumulate_steps"], stored["evaluate"]["eta"]
    for field in ("clip_range",) if name == "d3po" else ("unbiased_std",) if name == "grpo" else ():
        del stored["algorithm"][field]
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(stored))
    with pytest.raises(UserError, match=r"algorithm.name" if name == "prdp" else r"train.accumulate_steps: 1 → None"):
        check_same_run(config, file)
    same = {"d3po": ["algorithm.clip_range=0"], "grpo": ["algorithm.unbiased_std=false"]}.get(name, [])
    words = ["algorithm={name: rebel, clip_range: 1e-4}"] if name == "prdp" else [f"algorithm.name={name}"]
    words += ["train.accumulate_steps=1"] if name != "prdp" else []
    check_same_run(Config.load("aesthetic", [*words, *same]), file)


def test_the_run_of_sdpo_is_resumed(tmp_path: Path) -> None:
    config = Config.load("aesthetic")
    stored = yaml.safe_load(config.to_yaml())
    del stored["train"]["accumulate_steps"], stored["evaluate"]["eta"]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(stored))
    check_same_run(config, tmp_path / "config.yaml")
