"""The processes that share a run, as the loop uses them; `sdpo.distributed.processes` has the real ones."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor


class Collectives(Protocol):
    """A number of processes, and operations that all of them call together.

    Attributes:
        count: the number of processes.
        is_main: whether this process is the main one.
    """

    count: int
    is_main: bool

    def mean(self, tensor: Tensor) -> Tensor:
        """The mean of a tensor over all processes."""

    def gather(self, items: list[Any]) -> list[Any]:
        """The items of all processes, in the order of their ranks."""
