"""Memory of an epoch: the stored latents, and besides them only what a micro-batch needs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.paths import TESTS

SCRIPT = """
import sys
import torch
from helpers.plane_model import Plane
from sdpo.commands.bench import peak, reset_peak
from sdpo.loop.policy import Policy, PromptEmbeddings
from sdpo.prompts import Prompt
from sdpo.loop.rollout import rollout
from sdpo.method.types import Trajectories

groups, steps, micro_batch = map(int, sys.argv[1:])
backbone = Plane()
backbone.latent_shape = (2, 64, 64)
policy, denoiser, embeddings = Policy(backbone), backbone.denoiser(steps, 1.0), PromptEmbeddings(backbone)
def sample(groups):
    parts = rollout(policy, denoiser, embeddings, [Prompt("x")] * groups, range(groups), seed=0, epoch=1, branches=2,
                    micro_batch=micro_batch)
    return Trajectories.collect(parts, groups)
sample(micro_batch)
device = torch.device("cpu")
reset_peak(device)
before = peak(device)
whole = sample(groups)
print(peak(device) - before)
"""
LATENT = 2 * 64 * 64 * 4  # bytes


def grown(groups: int, steps: int, micro_batch: int) -> int:
    """Bytes that sampling takes at its peak."""
    paths = os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])
    # Large blocks go back to the system at once, so that the peak is what is alive.
    environment = {**os.environ, "PYTHONPATH": paths, "MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", SCRIPT, *map(str, (groups, steps, micro_batch))]
    return int(subprocess.run(command, check=True, env=environment, capture_output=True, text=True).stdout)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads a process's peak memory from Linux")
def test_sampling_stores_the_noisy_latents_and_nothing_else_of_that_size() -> None:
    stored = lambda groups, steps: groups * 2 * (steps + 1) * LATENT  # noqa: E731
    small, long, wide = grown(64, 10, 1), grown(64, 40, 1), grown(192, 10, 1)
    assert long - small == pytest.approx(stored(64, 40) - stored(64, 10), rel=0.1)
    assert wide - small == pytest.approx(stored(192, 10) - stored(64, 10), rel=0.1)
