"""The clock of an epoch's phases, on a time that the test sets."""

from __future__ import annotations

import pytest

from sdpo.loop import clock as module
from sdpo.loop.clock import Clock


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, in a list of one."""
    time = [100.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: time[0])
    return time


def test_a_phase_does_not_count_those_inside_it(now: list[float]) -> None:
    clock = Clock()
    with clock("epoch"):
        now[0] += 1
        with clock("sample"):
            now[0] += 2
            with clock("decode"):
                now[0] += 4
            now[0] += 8
        now[0] += 16
    now[0] += 32  # outside any phase
    with clock("sample"):
        now[0] += 64
    assert clock.seconds == {"epoch": 17, "sample": 74, "decode": 4}
    clock.reset()
    assert clock.seconds == {}


def test_a_phase_that_fails_is_closed(now: list[float]) -> None:
    clock = Clock()
    with pytest.raises(KeyError), clock("a"):
        now[0] += 1
        raise KeyError
    with clock("b"):
        now[0] += 2
    assert clock.seconds == {"a": 1, "b": 2}
