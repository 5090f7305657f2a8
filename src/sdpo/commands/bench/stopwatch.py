"""The time of one call, with the accelerator's work in it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from sdpo.loop.clock import wait_for


def seconds(device: torch.device, function: Callable[[], Any]) -> float:
    """Call a function; returns the seconds until the device has finished its work."""
    wait_for(device)
    start = time.perf_counter()
    function()
    wait_for(device)
    return time.perf_counter() - start
