"""Threads in place of the processes of a run, for what needs no more of them than rank, count and `gather`."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

Value = TypeVar("Value")


class ThreadedProcesses:
    """Stands for the `Processes` of one rank.

    Args:
        rank: the rank.
        count: the number of ranks.
        barrier: where all ranks wait for each other.
        given: by rank, the items that a rank has handed in; one list for all ranks.
    """

    def __init__(self, rank: int, count: int, barrier: threading.Barrier, given: list[list[Any]]) -> None:
        self.rank = rank
        self.count = count
        self._barrier = barrier
        self._given = given

    def gather(self, items: list[Any]) -> list[Any]:
        """The items of all ranks, in the order of the ranks."""
        self._given[self.rank] = items
        self._barrier.wait()
        together = [item for given in self._given for item in given]
        self._barrier.wait()  # nobody hands in the next items before all have read these
        return together


def on_every_rank(count: int, call: Callable[[Any], Value]) -> list[Value]:
    """Call a function with the processes of each rank, at once; returns the results by rank.

    A rank that fails ends the others, which would wait for it.
    """
    barrier, given = threading.Barrier(count, timeout=60), [list[Any]() for _ in range(count)]

    def run(rank: int) -> Value:
        try:
            return call(ThreadedProcesses(rank, count, barrier, given))
        except BaseException:
            barrier.abort()
            raise

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(run, range(count)))
