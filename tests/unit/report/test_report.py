"""The report: right numbers, a self-contained page, safe with any text, and useful while a run is unfinished."""

from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from sdpo.errors import UserError
from sdpo.report import write_report
from sdpo.report.axis_ticks import tick_labels, ticks
from sdpo.report.formatting import decimals_for, duration, number, percent
from sdpo.report.gallery import cut_tiles, gallery
from sdpo.report.reader import read_run
from sdpo.report.stats import average_neighbours, before_and_after, learning_curve, paired_gain, score_names

STEPS = (1, 2, 4, 8)
PROMPTS = ["a cat", "<script>alert(1)</script>", "a dog & a fox riding together on a very long red bicycle", "a ☃ bear"]


def build_run(
    path: Path,
    *,
    epochs: int = 10,
    images: int = 8,
    tile: int = 32,
    tiles: int = 6,
    lora: bool = True,
    unseen: bool = True,
    algorithm: str = "sdpo",
) -> Path:
    """Write a directory as training does: an evaluation every five epochs, scores that rise by exact amounts."""
    path.mkdir(parents=True)
    config: dict[str, Any] = {
        "seed": 42,
        "epochs": epochs,
        "model": {"path": "someone/tiny-diffusion"},
        "lora": {"rank": 4, "alpha": 4} if lora else None,
        "prompts": {"train": PROMPTS},
        "rewards": {"emoji": 1.0, "jpeg": 0.5},
        "algorithm": {"name": algorithm, "discount": 0.99},
        "sample": {"num_steps": 8},
        "evaluate": {"every": 5, "steps": list(STEPS)},
    }
    (path / "config.yaml").write_text(yaml.safe_dump(config, allow_unicode=True), encoding="utf-8")
    (path / "environment.json").write_text(json.dumps({"python": "3.12", "packages": {"torch": "2.9<b>"}}))
    rng = np.random.default_rng(0)
    rows = []
    for epoch in range(1, epochs + 1):
        rise = 1 - math.exp(-epoch / 15)
        rows.append(
            {
                "epoch": epoch,
                "images": 256 * epoch,
                "reward_queries": 768 * epoch,
                "denoiser_evaluations": 4096 * epoch,
                "seconds": 41.5 * epoch,
                "train/loss": 3e-5 * (1 - rise) + 2e-6 * rng.normal(),
                "train/clip_fraction": 0.1 * rise + 0.02 * rng.random(),
                "train/grad_norm": 0.4 + 0.1 * rng.random(),
                "train/learning_rate": 1e-4,
                "train/on_policy_log_ratio": 0.0,
                "reward/first_step": 0.2 + 0.3 * rise + 0.01 * rng.normal(),
                "reward/last_step": 0.3 + 0.4 * rise + 0.01 * rng.normal(),
                "reward/emoji": 0.3 + 0.3 * rise,
                "reward/jpeg": -40 + 8 * rise,
            }
        )
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for epoch in range(0, epochs + 1, 5):
        _write_evaluation(path, epoch, images, tile, tiles, unseen)
    if lora:
        (path / "lora").mkdir()
    return path


def _write_evaluation(path: Path, epoch: int, images: int, tile: int, tiles: int, unseen: bool) -> None:
    rng = np.random.default_rng(1)  # the same for every epoch: the same prompts and seeds
    rise = 1 - math.exp(-epoch / 15)
    prompts = [PROMPTS[i % len(PROMPTS)] for i in range(images)]

    def scores(scale: float) -> dict[str, dict[str, list[float]]]:
        found: dict[str, dict[str, list[float]]] = {"emoji": {}, "jpeg": {}, "emoji_judge": {}}
        for k, steps in enumerate(STEPS):
            base = 0.25 + 0.1 * k + 0.1 * rng.random(images)
            spread = rng.random(images)
            emoji = base + scale * rise * (0.3 - 0.04 * k) * (0.5 + spread)
            found["emoji"][str(steps)] = emoji.tolist()
            found["jpeg"][str(steps)] = (-40 + 2 * k + 9 * base + rise * (spread - 0.5)).tolist()
            found["emoji_judge"][str(steps)] = (emoji > 0.5).astype(float).tolist()
        return found

    record: dict[str, Any] = {
        "epoch": epoch,
        "images": 256 * epoch,
        "reward_queries": 768 * epoch,
        "denoiser_evaluations": 4096 * epoch,
        "seconds": 41.5 * epoch,
        "prompts": prompts,
        "seeds": list(range(images)),
        "judge": "emoji_judge",
        "scores": scores(1.0),
    }
    if unseen:
        record["unseen"] = {"prompts": prompts[:4], "seeds": [0, 1, 2, 3]}
        record["unseen"]["scores"] = {n: {s: v[:4] for s, v in by.items()} for n, by in scores(0.7).items()}
    folder = path / "evaluation" / f"epoch_{epoch:04d}"
    folder.mkdir(parents=True)
    folder.with_suffix(".json").write_text(json.dumps(record))
    for k, steps in enumerate(STEPS):
        Image.fromarray(_strip(tile, tiles, k, rise)).save(folder / f"steps_{steps}.png")


def _strip(tile: int, tiles: int, k: int, rise: float) -> np.ndarray:
    """Discs that get sharper with the step count and with training."""
    axis = np.linspace(-1, 1, tile)
    radius = np.hypot(*np.meshgrid(axis, axis))
    sharpness = 3 + 4 * k + 12 * rise
    disc = 1 / (1 + np.exp(sharpness * (radius - 0.6)))
    hues = np.array([[0.9, 0.6, 0.1], [0.2, 0.5, 0.8], [0.7, 0.3, 0.5], [0.3, 0.7, 0.4]])
    parts = [1 - disc[:, :, None] * (1 - hues[i % 4]) for i in range(tiles)]
    return (np.concatenate(parts, axis=1) * 255).astype(np.uint8)


class _Page(HTMLParser):
    """Collects the tags, the addresses that they point to and the text."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "action", "data")]
        assert not [name for name, _ in attrs if name.startswith("on")]

    def handle_data(self, data: str) -> None:
        self.text += data


def _parse(html: str) -> _Page:
    page = _Page()
    page.feed(html)
    return page


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return build_run(tmp_path / "emoji-run")


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
    page = _parse(html)
    assert page.addresses and all(address.startswith("data:image/") for address in page.addresses)
    assert not {"script", "link", "iframe", "object", "embed"} & set(page.tags)
    assert "@import" not in html and not re.search(r"url\(", html)
    assert "<script>alert(1)</script>" in page.text and "2.9<b>" in page.text
    assert "prefers-color-scheme: dark" in html and "width=device-width" in html


@pytest.mark.parametrize("algorithm", ["sdpo", "ddpo"])
def test_names_the_method_once(tmp_path: Path, algorithm: str) -> None:
    page = _parse(write_report(build_run(tmp_path / "r", algorithm=algorithm)).read_text(encoding="utf-8"))
    assert page.text.count("Stepwise Diffusion Policy Optimization") == 1
    assert algorithm.upper() in page.text


def test_report_is_a_pure_function_of_the_directory(run_dir: Path) -> None:
    names = ("report.html", "curves.png", "samples.png")
    write_report(run_dir)
    first = [(run_dir / name).read_bytes() for name in names]
    write_report(run_dir)
    assert first == [(run_dir / name).read_bytes() for name in names]


def test_sections_and_loading(tmp_path: Path) -> None:
    text = _parse(write_report(build_run(tmp_path / "my run")).read_text(encoding="utf-8")).text
    for words in ("rank 4", "emoji, jpeg × 0.5", "Result", "Learning curves", "While training", "Before and after"):
        assert words in text
    for words in ("against samples", "against reward queries", "against network evaluations", "against time"):
        assert words in text
    assert 'pipe.load_lora_weights("my run/lora")' in text
    assert "sdpo sample 'my run' " in text
    assert "2,560" in text and "7,680" in text and "40,960" in text and "7 min" in text  # the cost of ten epochs
    assert str(tmp_path) not in text
    full = _parse(write_report(build_run(tmp_path / "full", lora=False)).read_text(encoding="utf-8")).text
    assert 'from_pretrained("full/model")' in full and "load_lora_weights" not in full
    assert "full/model has not been written yet" in full


def test_paired_gain_by_hand() -> None:
    gain = paired_gain(np.array([1.0, 2.0, 3.0, 4.0]), np.array([2.0, 2.0, 6.0, 4.0]))
    # Differences 1 0 3 0: mean 1, squared deviations 0 1 4 1, sample variance 2, standard error √2/√4.
    assert gain.mean == 1.0
    assert gain.standard_error == pytest.approx(math.sqrt(2) / 2)
    assert gain.images == 4 and not gain.significant
    assert math.isnan(paired_gain(np.array([1.0]), np.array([2.0])).standard_error)
    with pytest.raises(ValueError, match="equally long"):
        paired_gain(np.zeros(3), np.zeros(4))


def test_result_table_shows_hand_numbers(tmp_path: Path) -> None:
    run_dir = build_run(tmp_path / "r", epochs=5, unseen=False)
    for epoch, emoji, judge in ((0, [1, 2, 3, 4], [0, 0, 0, 1]), (5, [2, 2, 6, 4], [1, 0, 1, 1])):
        file = run_dir / "evaluation" / f"epoch_{epoch:04d}.json"
        record = json.loads(file.read_text())
        record.update(prompts=["p"] * 4, seeds=[0, 1, 2, 3])
        record["scores"] = {"emoji": {"1": emoji}, "emoji_judge": {"1": judge}}
        file.write_text(json.dumps(record))
    html = write_report(run_dir).read_text(encoding="utf-8")
    assert "<td>2.50</td><td>3.50</td>" in html
    assert "+1.00 ± 0.71" in html and "too few images to tell" in html
    # Judge: 25 % → 75 %; differences 1 0 1 0 have the sample variance 1/3, so √(1/3)/2 = 28.9 points.
    assert "<td>25 %</td><td>75 %</td>" in html and "+50 ± 29 pp" in html


def test_images_that_do_not_match_are_not_paired(run_dir: Path) -> None:
    file = run_dir / "evaluation" / "epoch_0010.json"
    record = json.loads(file.read_text())
    record["seeds"][0] = 999
    file.write_text(json.dumps(record))
    assert all(row.gain is None for row in before_and_after(read_run(run_dir), "emoji"))
    html = write_report(run_dir).read_text(encoding="utf-8")
    assert "not paired" in html and "prompts or seeds differ" in html and "same prompt" not in html


def test_unfinished_run(tmp_path: Path) -> None:
    run_dir = tmp_path / "young"
    run_dir.mkdir()
    (run_dir / "config.yaml").write_text("epochs: 3\nrewards: {emoji: 1.0}\n")
    text = _parse(write_report(run_dir).read_text(encoding="utf-8")).text
    assert "not been evaluated yet" in text and "0 of 3, unfinished" in text and "No epoch has finished" in text
    for name in ("curves.png", "samples.png"):
        with Image.open(run_dir / name) as image:
            assert image.size[0] >= 600 and np.asarray(image.convert("L")).min() < 200  # a note is written on it


def test_only_the_base_model_evaluated(tmp_path: Path) -> None:
    run_dir = build_run(tmp_path / "r", epochs=4)
    text = _parse(write_report(run_dir).read_text(encoding="utf-8")).text
    assert "After: not there yet" in text and "no later evaluation yet" in text


def test_half_written_files_are_noted(run_dir: Path) -> None:
    (run_dir / "evaluation" / "epoch_0010.json").write_text('{"epoch": 10, "sco')
    strip = run_dir / "evaluation" / "epoch_0005" / "steps_4.png"
    strip.write_bytes(strip.read_bytes()[:60])
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 11, "ima')
    run = read_run(run_dir)
    assert run.tuned is not None and run.tuned.epoch == 5 and run.last_epoch == 10
    text = _parse(write_report(run_dir).read_text(encoding="utf-8")).text
    assert "epoch_0010.json is left out" in text and "metrics.jsonl, line 11" in text
    assert next(row for row in gallery(run) if row.steps == 4).after == []


def test_not_a_run_directory(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no config\.yaml"):
        write_report(tmp_path)
    with pytest.raises(UserError, match="not a directory"):
        write_report(tmp_path / "nowhere")
    (tmp_path / "config.yaml").write_text("- a\n- list\n")
    with pytest.raises(UserError, match="mapping"):
        write_report(tmp_path)
    (tmp_path / "config.yaml").write_text("a: [1")
    with pytest.raises(UserError, match="cannot be read as YAML"):
        write_report(tmp_path)


def test_resumed_run_counts_the_later_epochs(run_dir: Path) -> None:
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"epoch": 8, "images": 1}) + "\n")
    assert [row["epoch"] for row in read_run(run_dir).metrics] == list(range(1, 9))


def test_curves_fill_in_from_metrics_and_costs_may_be_missing(run_dir: Path) -> None:
    (run_dir / "evaluation" / "epoch_0005.json").unlink()
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    lines[4]["eval/emoji/4"] = 0.75
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    file = run_dir / "evaluation" / "epoch_0010.json"
    record = json.loads(file.read_text())
    del record["images"], record["judge"]
    file.write_text(json.dumps(record))
    points = learning_curve(read_run(run_dir), "emoji", 4)
    assert [(p.epoch, p.costs["images"]) for p in points] == [(0, 0), (5, 1280), (10, 2560)]
    assert points[1].mean == 0.75


def test_scores_that_are_not_finite_are_said_not_hidden(run_dir: Path) -> None:
    file = run_dir / "evaluation" / "epoch_0010.json"
    record = json.loads(file.read_text())
    record["scores"]["emoji"]["4"][0] = math.nan
    file.write_text(json.dumps(record))
    assert "not finite" in write_report(run_dir).read_text(encoding="utf-8")


def test_order_of_scores(run_dir: Path) -> None:
    run = read_run(run_dir)
    assert score_names(run) == ["emoji", "jpeg", "emoji_judge"]
    assert score_names(run, "unseen") == ["emoji", "jpeg", "emoji_judge"]


def test_columns_are_capped_and_large_tiles_reduced(tmp_path: Path) -> None:
    run_dir = build_run(tmp_path / "r", epochs=5, images=16, tile=300, tiles=14)
    assert len(cut_tiles(run_dir / "evaluation" / "epoch_0000" / "steps_1.png")) == 12
    html = write_report(run_dir).read_text(encoding="utf-8")
    assert html.count("data:image/jpeg") == 12 * 2 * 4
    with Image.open(run_dir / "samples.png") as samples:
        assert 12 * 256 < samples.size[0] < 13 * 280


def test_pixel_art_is_doubled_pixel_by_pixel(tmp_path: Path) -> None:
    run_dir = build_run(tmp_path / "r", epochs=5, tile=32)
    write_report(run_dir)
    tile = np.asarray(cut_tiles(run_dir / "evaluation" / "epoch_0000" / "steps_1.png")[0])
    doubled = tile.repeat(2, axis=0).repeat(2, axis=1)
    with Image.open(run_dir / "samples.png") as samples:
        canvas = np.asarray(samples)
    left = 92
    tops = [y for y in range(canvas.shape[0] - 64) if (canvas[y : y + 64, left : left + 64] == doubled).all()]
    assert len(tops) == 1


def test_ticks_cover_the_data_with_round_values() -> None:
    assert ticks(0, 100) == [0, 25, 50, 75, 100]
    assert tick_labels(ticks(0, 5000)) == ["0", "2k", "4k", "6k"]
    assert tick_labels(ticks(-0.5, 0.5)) == ["−0.50", "−0.25", "0", "0.25", "0.50"]
    for low, high in ((0.4131, 0.4133), (-40, -31), (7, 7), (0, 0), (1e6, 3e6)):
        found = ticks(low, high)
        assert found[0] <= low and found[-1] >= high and 3 <= len(found) <= 7
        assert len(set(tick_labels(found))) == len(found)


def test_numbers_read_well() -> None:
    assert number(-0.5, 2, sign=True) == "−0.50" and number(0.5, 1, sign=True) == "+0.5"
    assert number(math.inf, 2) == "not finite"
    assert decimals_for([0.0123], [0.5]) == 3 and decimals_for([math.nan], [12.3]) == 2
    shares = (0.476, 0.0137, 1.5, 0.0, 9e-5)
    assert [percent(s) for s in shares] == ["48 %", "1.4 %", "150 %", "less than 0.01 %", "less than 0.01 %"]
    assert [duration(s) for s in (5, 100, 4000)] == ["5 s", "2 min", "1 h 07 min"]
    assert average_neighbours([1.0, 2.0, 3.0], [1.0, 3.0, 5.0], limit=2) == ([1.5, 3.0], [2.0, 5.0], 2)


def test_use_it_can_be_run_for_packaged_given_and_hub_models(tmp_path: Path) -> None:
    for model, words in (
        ("emoji", 'sdpo.embedded("emoji")'),
        ("owner/name", 'from_pretrained("owner/name")'),
        ("(in Python)", "# pipe: the pipeline that was trained"),
    ):
        run_dir = build_run(tmp_path / model.replace("/", "_"), epochs=2)
        config = yaml.safe_load((run_dir / "config.yaml").read_text())
        config["model"] = {"path": model}
        config["lora"] = {"rank": 2}
        (run_dir / "config.yaml").write_text(yaml.safe_dump(config))
        assert words in _parse(write_report(run_dir).read_text(encoding="utf-8")).text, model


def test_a_metric_that_stays_zero_is_a_line_of_text_and_null_is_skipped(tmp_path: Path) -> None:
    run_dir = build_run(tmp_path / "r", epochs=3)
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        row.update({"train/clip_fraction": 0.0, "reward/first_step": None})
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    html = write_report(run_dir).read_text(encoding="utf-8")
    assert "0 in every epoch: Clip fraction" in html


def test_the_pictures_come_before_the_curves(tmp_path: Path) -> None:
    html = write_report(build_run(tmp_path / "r")).read_text(encoding="utf-8")
    order = [html.index(f"<h2>{title}") for title in ("Result", "Before and after", "Learning curves", "Cost")]
    assert order == sorted(order)
