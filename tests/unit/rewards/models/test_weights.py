"""Where the weights of reward models are looked for, and what a missing file's message says."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.command_line import Run
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


def test_every_source_is_pinned() -> None:
    for name, parts in sources.SOURCES.items():
        for source in parts:
            assert len(source.revision) == 40 and source.licence and source.megabytes and source.files, name


def test_without_a_network_the_message_says_which_files_to_place_where(
    sdpo: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png")
    failed = sdpo("score", "--reward", "pickscore", "--prompt", "a cat", "x.png")
    assert failed.returncode == 2
    for word in ("yuvalkirstain/PickScore_v1", "model.safetensors", "merges.txt", "path=", sources.ENVIRONMENT):
        assert word in failed.stderr, failed.stderr
