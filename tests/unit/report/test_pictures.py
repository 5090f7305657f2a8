"""The pictures of a report."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from helpers.learning_run import write_learning_run
from PIL import Image

from sdpo.report import write_report
from sdpo.report.gallery import cut_tiles


def test_columns_are_capped_and_large_tiles_reduced(tmp_path: Path) -> None:
    run_dir = write_learning_run(tmp_path / "r", epochs=5, images=16, tile=300, tiles=14)
    assert len(cut_tiles(run_dir / "evaluation" / "epoch_0000" / "steps_1.png")) == 12
    html = write_report(run_dir).read_text(encoding="utf-8")
    assert html.count("data:image/jpeg") == 12 * 2 * 4
    with Image.open(run_dir / "samples.png") as samples:
        assert 12 * 256 < samples.size[0] < 13 * 280


def test_pixel_art_is_doubled_pixel_by_pixel(tmp_path: Path) -> None:
    run_dir = write_learning_run(tmp_path / "r", epochs=5, tile=32)
    write_report(run_dir)
    tile = np.asarray(cut_tiles(run_dir / "evaluation" / "epoch_0000" / "steps_1.png")[0])
    doubled = tile.repeat(2, axis=0).repeat(2, axis=1)
    with Image.open(run_dir / "samples.png") as samples:
        canvas = np.asarray(samples)
    left = 92
    tops = [y for y in range(canvas.shape[0] - 64) if (canvas[y : y + 64, left : left + 64] == doubled).all()]
    assert len(tops) == 1
