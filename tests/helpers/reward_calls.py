"""Calls of a reward on images that are told apart by their red channel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sdpo.rewards import checked_scores


def ask(reward: Any, prompts: Sequence[str]) -> Tensor:
    """The checked scores of a reward for one image a prompt, of metadata {"i": i} and a red channel of i / 255."""
    count = len(prompts)
    images = torch.zeros(count, 3, 8, 8)
    images[:, 0] = torch.arange(count).view(-1, 1, 1) / 255
    return checked_scores("r", reward, images, list(prompts), [{"i": i} for i in range(count)])
