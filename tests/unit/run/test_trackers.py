"""Trackers write inside the run's directory and continue in a resumed run, as far as they can be told to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sdpo.run.trackers import Trackers


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The arguments of each start of accelerate's trackers, none of which is started."""
    from accelerate import Accelerator

    found: list[dict[str, Any]] = []
    monkeypatch.setattr("accelerate.tracking.get_available_trackers", lambda: ["wandb", "swanlab", "trackio", "aim"])
    monkeypatch.setattr("accelerate.accelerator.filter_trackers", lambda *a, **k: [])
    monkeypatch.setattr(Accelerator, "init_trackers", lambda self, project, **values: found.append(values))
    return found


def test_wandb_writes_inside_the_run_and_keeps_its_id(started: list[dict[str, Any]], tmp_path: Path) -> None:
    for folder in ("one", "one", "other"):
        (tmp_path / folder).mkdir(exist_ok=True)
        Trackers(["wandb", "swanlab", "trackio"], tmp_path / folder, {}).start()
    first, resumed, other = (values["init_kwargs"] for values in started)
    assert first == resumed
    assert first["wandb"]["dir"] == str(tmp_path / "one") and first["wandb"]["resume"] == "allow"
    assert Path(first["swanlab"]["logdir"]).parent == tmp_path / "one"
    name = first["wandb"]["id"]
    assert name == first["swanlab"]["id"] == first["trackio"]["name"] != other["wandb"]["id"]
    (tmp_path / "one").rename(tmp_path / "moved")
    Trackers(["wandb"], tmp_path / "moved", {}).start()
    assert started[-1]["init_kwargs"] == {"wandb": {**first["wandb"], "dir": str(tmp_path / "moved")}}


def test_a_damaged_file_gives_a_new_name(started: list[dict[str, Any]], tmp_path: Path) -> None:
    for text in ("", "[]", "{}", "\xff"):
        (tmp_path / "trackers.json").write_text(text)
        Trackers(["wandb"], tmp_path, {}).start()
        name = started[-1]["init_kwargs"]["wandb"]["id"]
        assert name.isalnum() and json.loads((tmp_path / "trackers.json").read_text()) == {"name": name}


def test_other_trackers_leave_no_file(started: list[dict[str, Any]], tmp_path: Path) -> None:
    Trackers(["aim"], tmp_path, {}).start()
    Trackers([], tmp_path, {}).start()
    assert started[-1]["init_kwargs"] == {} and not list(tmp_path.iterdir())
