"""Three hundred epochs in one process, with everything that a run does, take no more memory in the end than before.

SDPO_SOAK=1 python -m pytest -s tests/soak

"""

from __future__ import annotations

import os
import statistics
from pathlib import Path

import pytest
from helpers.small_run import config

from sdpo import Trainer

EPOCHS = 300


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
@pytest.mark.skipif("SDPO_SOAK" not in os.environ, reason="takes minutes: set SDPO_SOAK=1")
def test_memory_stays_flat(tiny_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mean of the last hundred epochs is within 2 % of that of the first hundred."""
    memory: list[int] = []
    epoch = Trainer.train_epoch

    def watched(self: Trainer) -> object:
        row = epoch(self)
        memory.append(resident())
        return row

    monkeypatch.setattr(Trainer, "train_epoch", watched)
    many = [f"a {thing} number {n}" for thing in ("cat", "dog", "fox") for n in range(40)]
    Trainer(config(tiny_pipeline, tmp_path / "run", epochs=EPOCHS, prompts={"train": many, "unseen": None})).train()
    first, last = statistics.mean(memory[:100]), statistics.mean(memory[-100:])
    megabytes = ", ".join(f"{memory[i] / 1e6:.1f}" for i in (0, 24, 49, 99, 149, 199, 249, 299))
    print(
        f"\nepochs 1, 25, 50, 100, 150, 200, 250, 300: {megabytes} MB; last 100 to first 100: {last / first - 1:+.2%}"
    )
    assert abs(last / first - 1) < 0.02
