"""Scores of image files: single files, folders, and CSV lists of images and prompts."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sdpo.commands.image_files import image_size, read_image
from sdpo.errors import UserError
from sdpo.rewards.base import PlacedReward
from sdpo.rewards.descriptions import DESCRIPTIONS
from sdpo.rewards.registry import load_reward, option_names
from sdpo.system.log import is_main_process, logger

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
"""The endings of the image files that are searched for in a folder."""

WRITTEN = ("image", "prompt")
"""Keys of every row of scores, by which their file is recognised."""


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
    transparent = []
    for indices in _batches(items, batch_size):
        images = [read_image(items[i].image) for i in indices]
        transparent += [items[i].image for i, image in zip(indices, images, strict=True) if image.was_transparent]
        pixels, prompts = torch.stack([image.pixels for image in images]).to(device), [items[i].prompt for i in indices]
        for name, reward in callables.items():
            for i, score in zip(indices, reward(pixels, prompts, [{} for _ in indices]).tolist(), strict=True):
                rows[i][name] = score
    if transparent and is_main_process():
        text = "transparent pixels are scored as white, in %d of %d images: %s%s"
        logger.warning(text, len(transparent), len(items), transparent[0], ", …" if len(transparent) > 1 else "")
    return rows


def _batches(items: Sequence[Item], batch_size: int) -> Iterator[list[int]]:
    """The places of images that are scored together: of one size, and at most `batch_size`."""
    by_size: dict[tuple[int, int], list[int]] = {}
    for index, item in enumerate(items):
        by_size.setdefault(image_size(item.image), []).append(index)
    for indices in by_size.values():
        yield from (indices[start : start + batch_size] for start in range(0, len(indices), batch_size))


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
