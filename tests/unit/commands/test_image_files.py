"""Image files of every kind become the RGB that a person sees, or are refused by name."""

from __future__ import annotations

import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.command_line import Run, failed, succeeded
from PIL import ExifTags, Image

from sdpo.commands.image_files import image_size, read_image
from sdpo.errors import UserError

RAMP = np.tile(np.linspace(0, 1, 256), (4, 1))


def png(path: Path, values: np.ndarray[Any, Any], colour: int, *chunks: tuple[bytes, bytes]) -> Path:
    """Write a 16-bit PNG by hand: Pillow writes none in colour. Colour 0 is grey, 2 RGB, 4 grey and alpha, 6 RGBA."""
    height, width = values.shape[:2]
    rows = values.reshape(height, -1).astype(">u2")
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    header = struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0)
    every = [(b"IHDR", header), *chunks, (b"IDAT", data), (b"IEND", b"")]
    packed = [struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in every]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(packed))
    return path


def read(path: Path) -> torch.Tensor:
    image = read_image(path)
    assert image.pixels.dtype == torch.float32 and image.pixels.shape[0] == 3
    assert image_size(path) == (image.pixels.shape[2], image.pixels.shape[1])
    return image.pixels


@pytest.mark.parametrize(("colour", "channels"), [(0, ()), (2, (3,)), (4, (2,)), (6, (4,))])
def test_sixteen_bits_scale_to_one(tmp_path: Path, colour: int, channels: tuple[int, ...]) -> None:
    values = np.broadcast_to(RAMP.reshape(4, 256, *[1] * len(channels)), (4, 256, *channels)).copy()
    if colour in (4, 6):
        values[..., -1] = 1  # opaque
    found = read(png(tmp_path / "deep.png", np.round(values * 65535), colour))
    assert found.mean().item() == pytest.approx(0.5, abs=0.003)
    torch.testing.assert_close(found, torch.from_numpy(RAMP).float().expand(3, 4, 256), atol=1 / 255, rtol=0)
    if colour == 0:
        torch.testing.assert_close(found[0], torch.from_numpy(RAMP).float(), atol=1e-5, rtol=0)


def test_a_deep_grey_tiff_scales_to_one(tmp_path: Path) -> None:
    Image.fromarray(np.round(RAMP * 65535).astype(np.uint16)).save(tmp_path / "deep.tiff")
    torch.testing.assert_close(read(tmp_path / "deep.tiff")[1], torch.from_numpy(RAMP).float(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", ["png", "jpg", "webp"])
def test_the_orientation_is_applied(tmp_path: Path, orientation: int, ending: str) -> None:
    image = Image.new("RGB", (32, 16), "black")
    image.paste("white", (0, 0, 16, 8))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    image.save(tmp_path / f"a.{ending}", exif=exif, quality=100)
    found = read(tmp_path / f"a.{ending}")
    assert tuple(found.shape[1:]) == ((16, 32) if orientation < 5 else (32, 16))
    up, left = (orientation in corners for corners in ((1, 2, 5, 6), (1, 4, 5, 8)))
    height, width = found.shape[1:]
    rows, columns = slice(0, height // 2) if up else slice(height // 2, None), slice(0, width // 2)
    columns = columns if left else slice(width // 2, None)
    assert found[:, rows, columns].mean() > 0.9 and found.mean() < 0.3


def test_transparent_pixels_are_white(tmp_path: Path) -> None:
    layer = Image.new("RGBA", (4, 2), (255, 0, 0, 255))
    layer.paste((0, 0, 255, 0), (0, 0, 2, 2))
    layer.save(tmp_path / "rgba.png")
    layer.save(tmp_path / "rgba.webp", lossless=True, exact=True)
    Image.new("LA", (4, 2), (0, 0)).save(tmp_path / "la.png")
    palette = layer.convert("RGB").convert("P", palette=Image.Palette.ADAPTIVE, colors=2)
    palette.save(tmp_path / "p.png", transparency=palette.getpixel((0, 0)))
    layer.convert("RGB").save(tmp_path / "key.png", transparency=(0, 0, 255))
    for name in ("rgba.png", "rgba.webp", "p.png", "key.png"):
        found = read_image(tmp_path / name)
        assert found.was_transparent, name
        torch.testing.assert_close(found.pixels[:, 0, 0], torch.ones(3))
        torch.testing.assert_close(found.pixels[:, 0, 3], torch.tensor([1.0, 0, 0]))
    assert read(tmp_path / "la.png").min() == 1
    layer.putalpha(51)
    layer.save(tmp_path / "half.png")
    torch.testing.assert_close(read(tmp_path / "half.png")[:, 0, 3], torch.tensor([1.0, 0.8, 0.8]))
    Image.new("RGBA", (4, 2), (255, 0, 0, 255)).save(tmp_path / "opaque.png")
    assert not read_image(tmp_path / "opaque.png").was_transparent


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr"])
def test_other_modes_look_as_they_are(tmp_path: Path, mode: str) -> None:
    image = Image.new("RGB", (16, 16), "black")
    image.paste("white", (8, 0, 16, 16))
    ending = "jpg" if mode in ("CMYK", "YCbCr") else "png"
    image.convert(mode).save(tmp_path / f"a.{ending}")
    found = read(tmp_path / f"a.{ending}")
    assert found[..., :7].max() < 0.03 and found[..., 9:].min() > 0.97


def many(path: Path, **options: Any) -> Path:
    frames = [Image.new("RGB", (64, 64), colour) for colour in ("red", "green", "blue")]
    frames[0].save(path, save_all=True, append_images=frames[1:], **options)
    return path


def cut(path: Path) -> Path:
    Image.effect_noise((64, 64), 50).save(path)
    path.write_bytes(path.read_bytes()[:400])
    return path


def wrong_chunk(path: Path) -> Path:
    Image.new("L", (8, 8)).save(path)
    path.write_bytes(path.read_bytes().replace(b"IDAT", b"I\0AT"))
    return path


def floats(path: Path, kind: Any) -> Path:
    Image.fromarray(np.ones((4, 4), kind)).save(path)
    return path


@pytest.mark.parametrize(
    ("name", "write", "words"),
    [
        ("a.gif", many, "holds 3 images"),
        ("a.png", many, "holds 3 images"),
        ("a.webp", many, "holds 3 images"),
        ("a.tiff", many, "holds 3 images"),
        ("b.png", cut, "cannot be read as an image"),
        ("b.jpg", cut, "cannot be read as an image"),
        ("c.png", wrong_chunk, "cannot be read as an image"),
        ("d.tiff", lambda path: floats(path, np.float32), "pixels of 32 bits"),
        ("e.tiff", lambda path: floats(path, np.int32), "pixels of 32 bits"),
        ("f.png", lambda path: png(path, np.ones((4, 4)), 0, (b"tRNS", b"\0\1")), "without transparency"),
        ("g.png", lambda path: path.write_bytes(b""), "cannot be read as an image"),
    ],
)
def test_what_is_no_single_image_is_refused_by_name(tmp_path: Path, name: str, write: Any, words: str) -> None:
    write(tmp_path / name)
    with pytest.raises(UserError) as refused:
        read(tmp_path / name)
    assert str(tmp_path / name) in str(refused.value) and words in str(refused.value)


def test_a_photograph_with_its_preview_is_read(tmp_path: Path) -> None:
    many(tmp_path / "a.jpg", format="MPO")
    with warnings.catch_warnings(), Image.open(tmp_path / "a.jpg") as image:
        if image.format != "MPO":
            pytest.skip("this Pillow writes damaged MPO files, which it reads as JPEG")
    assert read(tmp_path / "a.jpg")[0].mean() > 0.9, "the first is red"


@pytest.mark.parametrize("factor", [1.5, 3])
def test_too_many_pixels_end_with_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, factor: float) -> None:
    Image.new("1", (round(100 * factor), 100)).save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    for reader in (image_size, read_image):
        with warnings.catch_warnings(record=True) as said, pytest.raises(UserError, match="up to 10,000"):
            reader(tmp_path / "large.png")
        assert not said


def test_the_command(sdpo: Run, tmp_path: Path) -> None:
    Image.new("1", (20_000, 20_000)).save(tmp_path / "large.png")
    assert failed(sdpo("score", "--reward", "colorfulness", "large.png"), "too many pixels").count("sdpo: ") == 1
    Image.new("RGBA", (8, 8), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    Image.new("RGBA", (8, 8), (255, 0, 0, 255)).save(tmp_path / "red.png")
    done = succeeded(sdpo("score", "--reward", "colorfulness", "clear.png", "red.png"))
    assert "warning: transparent pixels are scored as white, in 1 of 2 images: clear.png\n" in done.stderr
