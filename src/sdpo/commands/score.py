"""Scores of image files: single files, folders, and CSV lists of images and prompts."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from sdpo.errors import UserError
from sdpo.rewards.base import PlacedReward
from sdpo.rewards.descriptions import DESCRIPTIONS
from sdpo.rewards.registry import load_reward, option_names

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
"""The endings of the image files that are searched for in a folder."""


@dataclass(frozen=True)
class Item:
    """An image file and the prompt of the image, which may be empty."""

    image: Path
    prompt: str


def collect(sources: Sequence[str], prompt: str | None) -> list[Item]:
    """List the images that the command line names.

    Args:
        sources: image files; folders, whose images are sorted by name; and `.csv` files with a column `image` (paths
            relative to the file's folder) and, unless `prompt` is given, a column `prompt`.
        prompt: the prompt of all images, or None.

    Raises:
        UserError: if a file, folder, column or row is missing or empty.
    """
    items: list[Item] = []
    for source in sources:
        path = Path(source)
        if path.is_dir():
            found = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES)
            if not found:
                raise UserError(f"the folder {path} has no image ({', '.join(sorted(SUFFIXES))})")
            items += [Item(p, prompt or "") for p in found]
        elif not path.is_file():
            raise UserError(f"there is no image, folder or CSV file {source!r}")
        elif path.suffix.lower() == ".csv":
            items += _read_csv(path, prompt)
        else:
            items.append(Item(path, prompt or ""))
    return items


def _read_csv(path: Path, prompt: str | None) -> list[Item]:
    """List the images of a CSV file; a given prompt is that of all images."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            columns, records = reader.fieldnames or [], list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read as a CSV file: {error}") from error
    needed = ["image", "prompt"] if prompt is None else ["image"]
    missing = [name for name in needed if name not in columns]
    if missing:
        raise UserError(
            f"{path}: no column {' or '.join(missing)}; its first line has {', '.join(columns) or 'nothing'}"
        )
    if not records:
        raise UserError(f"{path} has no rows")
    for number, record in enumerate(records, start=2):
        if any(not record[name] for name in needed if name == "image") or any(record[name] is None for name in needed):
            raise UserError(f"{path}:{number}: image or prompt is empty")
    return [Item(path.parent / r["image"], r["prompt"] if prompt is None else prompt) for r in records]


def score_files(
    items: Sequence[Item], rewards: Sequence[str], options: Mapping[str, Any], batch_size: int, device: str
) -> list[dict[str, Any]]:
    """Score every image by every reward.

    Args:
        items: the image files and their prompts.
        rewards: names or dotted paths of the rewards.
        options: the rewards' options: `key` is passed to every reward that has the option, `reward.key` to one reward.
        batch_size: the largest number of images in a call of a reward; images of one size share a call.
        device: the device on which reward models work.

    Returns:
        A row an item, with `image`, `prompt` and a score by the name of each reward.

    Raises:
        UserError: if a file cannot be read, a reward cannot be loaded or fails, or a reward reads prompts and an image
            has none.
    """
    reading = {description.name for description in DESCRIPTIONS if description.reads_prompt}
    for name in rewards:
        if name in reading and any(not item.prompt for item in items):
            raise UserError(
                f"reward {name!r} compares an image with its prompt: give --prompt, or a CSV file with prompts"
            )
    chosen = _options_of(rewards, options)
    callables = {n: PlacedReward(n, load_reward(n, device, chosen[n]), batch_size, device) for n in rewards}
    rows: list[dict[str, Any]] = [{"image": str(item.image), "prompt": item.prompt} for item in items]
    by_size: dict[tuple[int, int], list[int]] = {}
    for index, item in enumerate(items):
        by_size.setdefault(_size(item.image), []).append(index)
    for indices in by_size.values():
        for start in range(0, len(indices), batch_size):
            chunk = indices[start : start + batch_size]
            images = torch.stack([_read_image(items[i].image) for i in chunk]).to(device)
            prompts = [items[i].prompt for i in chunk]
            for name, reward in callables.items():
                with torch.no_grad():
                    scores = torch.as_tensor(reward(images, prompts, [{} for _ in chunk])).tolist()
                for i, score in zip(chunk, scores, strict=True):
                    rows[i][name] = score
    return rows


def _options_of(rewards: Sequence[str], options: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Distribute the options over the rewards that have them."""
    chosen: dict[str, dict[str, Any]] = {name: {} for name in rewards}
    for key, value in options.items():
        owner, _, bare = key.rpartition(".")
        takers = [owner] if owner in chosen else [name for name in rewards if key in option_names(name)]
        if not takers:
            known = "; ".join(f"{name} has {', '.join(option_names(name)) or 'none'}" for name in rewards)
            raise UserError(f"--option {key}: there is no such option ({known})")
        for name in takers:
            chosen[name][bare if owner in chosen else key] = value
    return chosen


def _size(path: Path) -> tuple[int, int]:
    """The width and height of an image file, in pixels."""
    try:
        with Image.open(path) as image:
            return image.size
    except (OSError, UnidentifiedImageError) as error:
        raise UserError(f"{path} cannot be read as an image: {error}") from error


def _read_image(path: Path) -> Tensor:
    """Read an image file as float32 [3, H, W] in [0, 1]."""
    try:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
    except OSError as error:
        raise UserError(f"{path} cannot be read as an image: {error}") from error
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255
