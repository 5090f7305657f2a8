"""The progress bar shows what an epoch has."""

from __future__ import annotations

import pytest

from sdpo.run.progress import ProgressBar


@pytest.mark.parametrize(("reward", "note"), [(0.25, "reward 0.25  loss 1.5"), (None, "loss 1.5")])
def test_an_epoch_without_a_last_reward_has_a_note_too(reward: float | None, note: str) -> None:
    with ProgressBar(total=2, done=0) as bar:
        bar.advance({"reward/last_step": reward, "train/loss": 1.5})
        (task,) = bar._bar.tasks
        assert task.fields["note"] == note and task.completed == 1
