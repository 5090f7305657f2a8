"""The processes of a run that has one."""

from __future__ import annotations

from typing import Any

from torch import Tensor


class OneProcess:
    """A single process: collectives return what they are given.

    Args:
        is_main: whether it counts as the main one.
    """

    count = 1
    rank = 0

    def __init__(self, is_main: bool = True) -> None:
        self.is_main = is_main

    def mean(self, tensor: Tensor) -> Tensor:
        return tensor

    def gather(self, items: list[Any]) -> list[Any]:
        return items
