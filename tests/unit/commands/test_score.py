"""`sdpo score` on image files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers.command_line import Run, failed, succeeded
from PIL import Image


def test_score_command(sdpo: Run, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for i, size in enumerate([(64, 64), (40, 64), (64, 64)]):
        Image.effect_noise(size, 50).convert("RGB").save(folder / f"{i}.png")
    command = ["score", "--reward", "colorfulness", "--reward", "jpeg_compressibility", "images", "--json"]
    rows = json.loads(succeeded(sdpo(*command)).stdout)
    assert [Path(row["image"]).name for row in rows] == ["0.png", "1.png", "2.png"]
    assert [row["colorfulness"] for row in rows] == pytest.approx([0, 0, 0], abs=1e-3)
    assert max(row["jpeg_compressibility"] for row in rows) < 0
    (tmp_path / "pairs.csv").write_text("image,prompt\nimages/0.png,a cat\nimages/1.png,a dog\n")
    assert "a dog" in sdpo("score", "--reward", "emoji_score", "pairs.csv", "-o", "scores.json").stdout
    assert len(json.loads((tmp_path / "scores.json").read_text())) == 2
    for arguments, words in (
        (["--reward", "emoji_score", "images/0.png"], "give --prompt"),
        (["--reward", "colorfulness", "nothing.png"], "nothing.png"),
        (["--reward", "colorfulness", "pairs.csv", "--option", "colour=1"], "colour"),
        (["--reward", "colourfulness", "images/0.png"], "did you mean 'colorfulness'"),
        (["--reward", "colorfulness", "scores.json"], "cannot be read as an image"),
    ):
        failed(sdpo("score", *arguments), words)
