"""The clock that the loop calls where a phase of an epoch begins and ends; `sdpo bench` reads it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Clock:
    """Counts seconds by phase; the time of a phase inside another one counts for the inner phase alone.

    Args:
        device: an accelerator whose queued work is waited for where a phase begins and ends. None waits for nothing,
            so that training is not slowed down and the seconds of a phase are only those of the host.

    Attributes:
        seconds: the seconds of each phase so far, by name.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self.seconds: dict[str, float] = {}
        self._device = device
        self._open: list[str] = []  # the phases under way, the innermost last
        self._since = 0.0  # when the innermost phase last began to run

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """A context whose time counts as `phase`."""
        self._charge()
        self._open.append(phase)
        try:
            yield
        finally:
            self._charge()
            self._open.pop()

    def reset(self) -> None:
        """Forget the seconds that were counted so far."""
        self.seconds = {}

    def _charge(self) -> None:
        """Charge the time since the last call to the innermost phase."""
        if self._device is not None:
            wait_for(self._device)
        now = time.perf_counter()
        if self._open:
            self.seconds[self._open[-1]] = self.seconds.get(self._open[-1], 0.0) + now - self._since
        self._since = now


def wait_for(device: torch.device) -> None:
    """Wait until the accelerator has finished its queued work; a CPU has none."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
