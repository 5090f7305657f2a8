"""The page of a report: self-contained, safe with any text, and a pure function of the directory."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from helpers.html_pages import parse
from helpers.learning_run import write_learning_run
from helpers.run_files import rows
from helpers.written_runs import write_rows
from PIL import Image

from sdpo.report import write_report


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return write_learning_run(tmp_path / "emoji-run")


def test_writes_the_three_files(run_dir: Path) -> None:
    page = write_report(run_dir)
    assert page == run_dir / "report.html"
    with Image.open(run_dir / "curves.png") as curves, Image.open(run_dir / "samples.png") as samples:
        assert curves.size[0] > 1500 and curves.size[1] > 400  # three panels
        # Four step counts, base above tuned: at least eight rows of tiles twice their size.
        assert samples.size[1] >= 8 * 64 and samples.size[0] >= 6 * 64
        samples.load()
        curves.load()


def test_page_is_self_contained_and_escaped(run_dir: Path) -> None:
    html = write_report(run_dir).read_text(encoding="utf-8")
    page = parse(html)
    assert page.addresses and all(address.startswith("data:image/") for address in page.addresses)
    assert not {"script", "link", "iframe", "object", "embed"} & set(page.tags)
    assert "@import" not in html and not re.search(r"url\(", html)
    assert "<script>alert(1)</script>" in page.text and "2.9<b>" in page.text
    assert "prefers-color-scheme: dark" in html and "width=device-width" in html


@pytest.mark.parametrize("algorithm", ["sdpo", "ddpo"])
def test_names_the_method_once(tmp_path: Path, algorithm: str) -> None:
    page = parse(write_report(write_learning_run(tmp_path / "r", algorithm=algorithm)).read_text(encoding="utf-8"))
    assert page.text.count("Stepwise Diffusion Policy Optimization") == 1
    assert algorithm.upper() in page.text


def test_report_is_a_pure_function_of_the_directory(run_dir: Path) -> None:
    names = ("report.html", "curves.png", "samples.png")
    write_report(run_dir)
    first = [(run_dir / name).read_bytes() for name in names]
    write_report(run_dir)
    assert first == [(run_dir / name).read_bytes() for name in names]


def test_sections_and_loading(tmp_path: Path) -> None:
    text = parse(write_report(write_learning_run(tmp_path / "my run")).read_text(encoding="utf-8")).text
    for words in ("rank 4", "emoji, jpeg × 0.5", "Result", "Learning curves", "While training", "Before and after"):
        assert words in text
    for words in ("against samples", "against reward queries", "against network evaluations", "against time"):
        assert words in text
    assert 'pipe.load_lora_weights("my run/lora")' in text
    assert "sdpo sample 'my run' " in text
    assert "2,560" in text and "7,680" in text and "40,960" in text and "7 min" in text  # the cost of ten epochs
    assert str(tmp_path) not in text
    full = parse(write_report(write_learning_run(tmp_path / "full", lora=False)).read_text(encoding="utf-8")).text
    assert 'from_pretrained("full/model")' in full and "load_lora_weights" not in full
    assert "full/model has not been written yet" in full


def test_use_it_can_be_run_for_packaged_given_and_hub_models(tmp_path: Path) -> None:
    for model, words in (
        ("emoji", 'sdpo.embedded("emoji")'),
        ("owner/name", 'from_pretrained("owner/name")'),
        ("(in Python)", "# pipe: the pipeline that was trained"),
    ):
        run_dir = write_learning_run(tmp_path / model.replace("/", "_"), epochs=2)
        config = yaml.safe_load((run_dir / "config.yaml").read_text())
        config["model"] = {"path": model}
        config["lora"] = {"rank": 2}
        (run_dir / "config.yaml").write_text(yaml.safe_dump(config))
        assert words in parse(write_report(run_dir).read_text(encoding="utf-8")).text, model


def test_a_metric_that_stays_zero_is_a_line_of_text_and_null_is_skipped(tmp_path: Path) -> None:
    run_dir = write_learning_run(tmp_path / "r", epochs=3)
    write_rows(run_dir, [row | {"train/clip_fraction": 0.0, "reward/first_step": None} for row in rows(run_dir)])
    html = write_report(run_dir).read_text(encoding="utf-8")
    assert "0 in every epoch: Clip fraction" in html


def test_the_pictures_come_before_the_curves(tmp_path: Path) -> None:
    html = write_report(write_learning_run(tmp_path / "r")).read_text(encoding="utf-8")
    order = [html.index(f"<h2>{title}") for title in ("Result", "Before and after", "Learning curves", "Cost")]
    assert order == sorted(order)
