"""The pictures of an export: the tuned model's first image of each prompt, of a size that web pages show."""

from __future__ import annotations

import base64
import io
from pathlib import Path

from helpers.written_runs import PROMPTS, write_run
from PIL import Image

from sdpo.commands.export.pictures import Picture, choose_pictures
from sdpo.report.reader import read_run


def test_images_of_the_tuned_model_with_their_prompts(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "run", {1: [0.2, 0.4], 4: [0.2, 0.4]}, tiles=True))
    found = choose_pictures(run, 4)
    assert [picture.prompt for picture in found] == PROMPTS
    with Image.open(tmp_path / "run/evaluation/epoch_0001/steps_4.png") as strip:
        assert list(found[1].image.getdata()) == list(strip.crop((16, 0, 32, 16)).getdata())
    assert choose_pictures(run, 2) == []


def test_one_image_of_each_prompt(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run", {1: [0.2, 0.4]}, tiles=True)
    file = path / "evaluation" / "epoch_0001.json"
    file.write_text(file.read_text().replace('"a dog & a fox"', '"a cat"'))
    assert [p.prompt for p in choose_pictures(read_run(path), 1)] == ["a cat", PROMPTS[1], "a bear"]


def test_sizes(tmp_path: Path) -> None:
    for side, saved, thumbnail in ((24, 504, 240), (300, 300, 256), (1024, 512, 256)):
        picture = Picture("a cat", Image.new("RGB", (side, side), "red"))
        picture.save(tmp_path / "a.png")
        data = base64.b64decode(picture.thumbnail.removeprefix("data:image/jpeg;base64,"))
        with Image.open(tmp_path / "a.png") as png, Image.open(io.BytesIO(data)) as jpeg:
            assert (png.format, png.size) == ("PNG", (saved, saved))
            assert (jpeg.format, jpeg.size) == ("JPEG", (thumbnail, thumbnail))
