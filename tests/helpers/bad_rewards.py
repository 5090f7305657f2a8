"""Rewards that fail in every way, and some that pass. A test names one as `helpers.bad_rewards:NAME`."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

Metadata = list[dict[str, Any]]


def path_to(name: str) -> str:
    """The dotted path of a reward of this module."""
    assert name in globals(), name
    return f"{__name__}:{name}"


# -- rewards that pass -------------------------------------------------------------------------------------------------


def brightness(images: Tensor, prompts: list[str], metadata: Metadata) -> Tensor:
    return images.mean((1, 2, 3))


def contrast(images: Tensor, prompts: list[str], metadata: Metadata) -> Tensor:
    return images.std((1, 2, 3))


# -- answers that are no scores ----------------------------------------------------------------------------------------


def short(images: Tensor, prompts: list[str], metadata: Metadata) -> Tensor:
    return torch.zeros(len(prompts) - 1)


def nan(images: Tensor, prompts: list[str], metadata: Metadata) -> list[float]:
    return [float("nan")] * len(prompts)


def words(images: Tensor, prompts: list[str], metadata: Metadata) -> list[str]:
    return ["good"] * len(prompts)


def nothing(images: Tensor, prompts: list[str], metadata: Metadata) -> list[float]:
    return []


def complex_numbers(images: Tensor, prompts: list[str], metadata: Metadata) -> Tensor:
    return images.mean((1, 2, 3)) + 1j


def columns(images: Tensor, prompts: list[str], metadata: Metadata) -> Tensor:
    return torch.zeros(len(prompts), 1)


def raises(images: Tensor, prompts: list[str], metadata: Metadata) -> Tensor:
    raise RuntimeError("the judge is asleep")


def hangs(images: Tensor, prompts: list[str], metadata: Metadata) -> None:
    time.sleep(60)


# -- scores that teach nothing -----------------------------------------------------------------------------------------


def constant(images: Tensor, prompts: list[str], metadata: Metadata) -> Tensor:
    return torch.zeros(len(prompts))


def noisy(images: Tensor, prompts: list[str], metadata: Metadata) -> Tensor:
    return torch.rand(len(prompts))


def relative(images: Tensor, prompts: list[str], metadata: Metadata) -> Tensor:
    """Scores an image against the others of its batch."""
    return contrast(images, prompts, metadata) - contrast(images, prompts, metadata).mean()


def blank(images: Tensor, prompts: list[str], metadata: Metadata) -> Tensor:
    """Prefers images of one colour."""
    return -contrast(images, prompts, metadata)


class Drifting:
    """Scores by contrast, of which the first call gives 1 % less than the later ones."""

    calls = 0

    def __call__(self, images: Tensor, prompts: list[str], metadata: Metadata) -> Tensor:
        self.calls += 1
        return contrast(images, prompts, metadata) * (1 + 1e-2 * (self.calls > 1))


# -- failures at a known call ------------------------------------------------------------------------------------------


class Breaks:
    """Scores by brightness and fails once.

    Args:
        at: the call that fails, from 1.
        unless: no call fails where this file exists.
        rank: the process that fails; None is every one.
        killed: whether the process is killed, instead of raising an error.
    """

    def __init__(self, at: int, unless: str = "", rank: int | None = None, killed: bool = False) -> None:
        self.at, self.unless, self.rank, self.killed = at, unless, rank, killed
        self.calls = 0

    def __call__(self, images: Tensor, prompts: list[str], metadata: Metadata) -> Tensor:
        self.calls += 1
        here = self.rank is None or os.environ.get("RANK") == str(self.rank)
        if here and self.calls == self.at and not (self.unless and Path(self.unless).exists()):
            if self.killed:
                os.kill(os.getpid(), signal.SIGKILL)
            raise RuntimeError("the judge is asleep")
        return brightness(images, prompts, metadata)
