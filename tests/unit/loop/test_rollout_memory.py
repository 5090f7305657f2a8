"""Memory of an epoch: the stored latents, and besides them only what a micro-batch needs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.paths import TESTS, import_path

SIZES = {"small": (64, 10), "long": (64, 40), "wide": (192, 10)}  # groups and steps
SCRIPT = f"""
import torch
from helpers.plane_model import Plane, sample
from sdpo.commands.bench import peak, reset_peak
from sdpo.loop.policy import Policy

backbone, device = Plane(), torch.device("cpu")
backbone.latent_shape = (2, 64, 64)
for groups, steps in {list(SIZES.values())}:
    sample(Policy(backbone), steps, ["x"], micro_batch=1)
    reset_peak(device)
    before = peak(device)
    whole = sample(Policy(backbone), steps, ["x"] * groups, micro_batch=1)
    print(peak(device) - before)
    del whole
"""
LATENT = 2 * 64 * 64 * 4  # bytes


def stored(size: str) -> int:
    """Bytes of the noisy latents of two branches."""
    groups, steps = SIZES[size]
    return groups * 2 * (steps + 1) * LATENT


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads a process's peak memory from Linux")
def test_sampling_stores_the_noisy_latents_and_nothing_else_of_that_size() -> None:
    # Large blocks go back to the system at once, so that the peak is what is alive.
    memory = {"MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], check=True, env={**os.environ, "PYTHONPATH": import_path(TESTS), **memory},
        capture_output=True, text=True,
    )  # fmt: skip
    taken = dict(zip(SIZES, map(int, done.stdout.split()), strict=True))
    for more in ("long", "wide"):
        assert taken[more] - taken["small"] == pytest.approx(stored(more) - stored("small"), rel=0.1), taken
