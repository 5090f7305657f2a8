"""Where the weights of reward models are looked for, and what a missing file's message says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from helpers.command_line import Run, failed
from PIL import Image

from sdpo.errors import UserError
from sdpo.rewards.models import weights as sources


def test_locate_looks_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(sources.ENVIRONMENT, str(tmp_path))
    (tmp_path / "imagereward").mkdir()
    with pytest.raises(UserError, match=r"has no ImageReward\.pt, vocab\.txt"):
        sources.locate("imagereward")
    for file in ("ImageReward.pt", "vocab.txt"):
        (tmp_path / "imagereward" / file).touch()
    assert sources.locate("imagereward")["vocab.txt"] == tmp_path / "imagereward" / "vocab.txt"


def test_every_source_is_pinned_to_one_commit_and_names_its_files() -> None:
    pinned: dict[str, str] = {}
    for name, parts in sources.SOURCES.items():
        files = [file for source in parts for file in source.files]
        assert len(files) == len(set(files)) > 0, f"{name}: files are found by their names"
        assert {Path(file).suffix for file in files} <= {".safetensors", ".pt", ".pth", ".json", ".txt"}, name
        for source in parts:
            assert re.fullmatch(r"[\w.-]+/[\w.-]+", source.repository), name
            assert re.fullmatch(r"[0-9a-f]{40}", source.revision), name
            assert pinned.setdefault(source.repository, source.revision) == source.revision, name
            assert source.licence in ("MIT", "Apache-2.0") and 1 <= source.megabytes < 10_000, name
    assert set(sources.SOURCES) == {"aesthetic", "imagereward", "hpsv2", "hpsv2.1", "pickscore", "clipscore"}


def test_without_a_network_the_message_says_which_files_to_place_where(
    sdpo: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png")
    result = sdpo("score", "--reward", "pickscore", "--prompt", "a cat", "x.png")
    failed(result, "yuvalkirstain/PickScore_v1", "model.safetensors", "merges.txt", "path=", sources.ENVIRONMENT)
