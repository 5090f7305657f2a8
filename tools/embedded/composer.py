"""Composes images of the font's animals on coloured backgrounds, with captions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

FONT = "/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"
SIZE = 64
GLYPHS = dict(
    cat="🐈", dog="🐕", horse="🐎", monkey="🐒", rabbit="🐇", zebra="🦓", spider="🕷", bird="🐦", sheep="🐑",
    deer="🦌", cow="🐄", goat="🐐", lion="🦁", tiger="🐅", bear="🐻", raccoon="🦝", fox="🦊", wolf="🐺",
    lizard="🦎", beetle="🪲", ant="🐜", butterfly="🦋", fish="🐟", shark="🦈", whale="🐋", dolphin="🐬",
    squirrel="🐿", mouse="🐁", rat="🐀", snake="🐍", turtle="🐢", frog="🐸", chicken="🐔", duck="🦆", goose="🪿",
    bee="🐝", pig="🐖", turkey="🦃", fly="🪰", llama="🦙", camel="🐫", bat="🦇", gorilla="🦍", hedgehog="🦔",
    kangaroo="🦘",
)  # fmt: skip
ANIMALS = list(GLYPHS)
COLORS = dict(
    red=(236, 120, 116), orange=(248, 186, 116), yellow=(250, 232, 136), green=(160, 214, 150),
    blue=(148, 194, 240), purple=(196, 166, 230), pink=(250, 190, 212), white=(246, 246, 244),
)  # fmt: skip
COLOR_NAMES = list(COLORS)


def held_out(animal: int) -> int:
    """The one background colour whose combination with this animal no model is ever shown."""
    return (animal * 5 + 3) % len(COLOR_NAMES)


def article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def caption(animal: int, color: int, rng: np.random.Generator) -> str:
    name, u = ANIMALS[animal], rng.random()
    if u < 0.5:
        return name
    if u < 0.62:
        return f"{article(name)} {name}"
    return f"{article(name)} {name} on {article(COLOR_NAMES[color])} {COLOR_NAMES[color]} background"


@dataclass(frozen=True)
class Drawn:
    """Composed images.

    Attributes:
        images: uint8 [N, 3, 64, 64].
        animals: the index of each animal, int [N].
        colors: the index of each background colour, int [N].
        coverage: how far the animal covers each pixel, uint8 [N, 1, 64, 64].
        backgrounds: the background of each row of pixels, float [N, 3, 64, 1] in [0, 1].
    """

    images: Tensor
    animals: np.ndarray
    colors: np.ndarray
    coverage: Tensor
    backgrounds: Tensor


class Composer:
    """Places glyphs of varied size, position and mirroring on varied backgrounds."""

    def __init__(self, font: str = FONT) -> None:
        face = ImageFont.truetype(font, 109)
        self.variants: list[list[np.ndarray]] = []  # [animal][size] premultiplied RGBA float32
        for glyph in GLYPHS.values():
            canvas = Image.new("RGBA", (160, 160))
            ImageDraw.Draw(canvas).text((8, 8), glyph, font=face, embedded_color=True)
            box = canvas.getbbox()
            assert box is not None, f"the font has no glyph for {glyph}"
            art = np.asarray(canvas.crop(box), np.float32)
            art[..., :3] *= art[..., 3:] / 255.0
            sizes = []
            for longest in (46, 49, 52, 55, 58, 61):
                scale = longest / max(art.shape[:2])
                shape = (max(1, round(art.shape[1] * scale)), max(1, round(art.shape[0] * scale)))
                channels = [
                    np.asarray(Image.fromarray(art[..., c]).resize(shape, Image.Resampling.LANCZOS)) for c in range(4)
                ]
                sizes.append(np.clip(np.stack(channels, -1), 0, 255))
            self.variants.append(sizes)

    def draw(self, animal: int, color: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Draw one image, uint8 [64, 64, 3]; the animal's coverage, uint8 [64, 64]; the background, float [64, 3]."""
        art = self.variants[animal][rng.integers(len(self.variants[animal]))]
        if rng.random() < 0.5:
            art = art[:, ::-1]
        base = np.array(COLORS[COLOR_NAMES[color]], np.float32) + rng.normal(0, 5, 3).astype(np.float32)
        shade = np.linspace(-1, 1, SIZE, dtype=np.float32) * rng.uniform(0, 10)
        background = base + shade[:, None]
        image = np.broadcast_to(background[:, None], (SIZE, SIZE, 3)).copy()
        height, width = art.shape[:2]
        # Positions prefer the centre: half of the free margin is used.
        top = round((SIZE - height) * (0.5 + rng.uniform(-0.25, 0.25)))
        left = round((SIZE - width) * (0.5 + rng.uniform(-0.25, 0.25)))
        coverage = np.zeros((SIZE, SIZE), np.uint8)
        coverage[top : top + height, left : left + width] = art[..., 3].round()
        window = image[top : top + height, left : left + width]
        window *= 1 - art[..., 3:] / 255.0
        window += art[..., :3]
        return np.clip(image, 0, 255).round().astype(np.uint8), coverage, background

    def dataset(self, count: int, seed: int) -> Drawn:
        """Draw `count` images; held-out pairs of animal and colour never occur."""
        rng = np.random.default_rng(seed)
        animals = np.arange(count) % len(ANIMALS)
        colors = rng.integers(len(COLORS), size=count)
        clash = colors == (animals * 5 + 3) % len(COLORS)
        colors[clash] = (colors[clash] + rng.integers(1, len(COLORS), size=int(clash.sum()))) % len(COLORS)
        images, coverage, backgrounds = zip(
            *(self.draw(a, c, rng) for a, c in zip(animals, colors, strict=True)), strict=True
        )
        return Drawn(
            images=torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous(),
            animals=animals,
            colors=colors,
            coverage=torch.from_numpy(np.stack(coverage))[:, None],
            backgrounds=torch.from_numpy(np.stack(backgrounds)).permute(0, 2, 1)[..., None] / 255,
        )


def to_unit(images: Tensor) -> Tensor:
    return images.float() / 255.0
