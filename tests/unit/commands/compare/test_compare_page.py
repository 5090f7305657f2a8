"""The files and the page of a comparison, safe with any text."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest
from helpers.written_runs import write_run
from PIL import Image
from rich.console import Console

from sdpo.cli.compare import rich_table
from sdpo.commands.compare import compare_directories
from sdpo.commands.compare.tables import Cell, ComparisonTable
from sdpo.report.line_styles import LINE_STYLES, line_style

FLAT = {1: [0.2, 0.2, 0.2], 4: [0.4, 0.4, 0.4]}
RISING = {1: [0.2, 0.4, 0.6], 4: [0.4, 0.5, 0.6]}


def test_the_page_and_its_files(tmp_path: Path) -> None:
    evil = "<b>&\"'|`"
    words = [
        f"{evil}={write_run(tmp_path / 'a', RISING, tiles=True, reward='<i>score')}",
        str(write_run(tmp_path / "b", FLAT, algorithm="ddpo", reward="<i>score", samples=60, epochs=9)),
    ]
    for out in ("one", "two"):
        compare_directories(words, tmp_path / out)
    files = ("comparison.html", "comparison.md", "comparison.csv")
    figures = ("compare.png", "compare_queries.png", "compare_evaluations.png")
    for name in (*files, *figures):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name
    for name in figures:
        assert Image.open(tmp_path / "one" / name).size[0] >= 900
    html = (tmp_path / "one" / "comparison.html").read_text()
    assert '<b>&"' not in html and "<script>" not in html and "<i>score" not in html
    assert (
        "&lt;b&gt;&amp;" in html
        and "&lt;script&gt;alert(1)&lt;/script&gt;" in html
        and 'alt="base model, 1 step: a cat"' in html
        and "data:image/png" in html
    )
    assert not re.findall(r'(?:src|href)="(?!data:)', html), "the page loads something"
    # Notes: an unfinished run, unequal samples; the areas end where the shorter run does.
    assert "b is unfinished: epoch 2 of 9." in html and "120" in html and "different numbers of samples" in html
    rows = list(csv.DictReader((tmp_path / "one" / "comparison.csv").open()))
    assert list(rows[0]) == [
        "name", "seed", "steps", "epoch", "images", "reward_queries", "denoiser_evaluations", "seconds", "reward",
        "value",
    ]  # fmt: skip
    assert len(rows) == 2 * 2 * 2 * 3
    assert rows[2] | {"seconds": ""} == {
        "name": evil, "seed": "42", "steps": "1", "epoch": "2", "images": "200", "reward_queries": "600",
        "denoiser_evaluations": "2000", "seconds": "", "reward": "<i>score", "value": "0.6",
    }  # fmt: skip


def test_more_than_eight_lines_still_look_different() -> None:
    styles = [line_style(i) for i in range(3 * len(LINE_STYLES))]
    assert len({(style.light, style.dash, style.marker) for style in styles}) == len(styles)
    assert all(re.fullmatch("#[0-9a-fA-F]{6}", style.light) for style in styles)


def test_the_terminal_shows_texts_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    table = ComparisonTable("t[b]", "about", ["1 step"], [("[red]name", [Cell("0.5", "± 0.1", best=True)])])
    Console(highlight=False, markup=False, width=80).print(rich_table(table))
    shown = capsys.readouterr().out
    assert "[red]name" in shown and "0.5 ± 0.1" in shown and "[bold]" not in shown and "t[b]" in shown
