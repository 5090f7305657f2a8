"""Learning-rate schedules."""

from __future__ import annotations

import pytest

from sdpo.loop.optimizer import warmup_decay


def test_learning_rate_schedules() -> None:
    for name, expected in (
        ("constant", [0.5, 1.0, 1.0, 1.0, 1.0, 1.0]),
        ("linear", [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]),
        ("cosine", [0.5, 1.0, 1.0, 0.853553, 0.5, 0.146447]),
    ):
        factor = warmup_decay(name, warmup_steps=2, total_steps=6)
        assert [factor(step) for step in range(6)] == pytest.approx(expected, abs=1e-6), name
