"""Time limits of calls that can be interrupted."""

from __future__ import annotations

import signal
import threading
import time

import pytest

from sdpo.errors import RewardError
from sdpo.system.time_limit import overdue, time_limit


def test_a_call_that_takes_too_long_is_ended() -> None:
    class Swallows:
        def __call__(self) -> None:
            try:
                time.sleep(60)
            except Exception:
                pytest.fail("the code that hangs could go on")

    start = time.monotonic()
    with pytest.raises(RewardError, match="late"), time_limit(0.1, RewardError("late")):
        assert overdue() == "late"
        Swallows()()
    assert time.monotonic() - start < 10 and overdue() == ""
    before = signal.getsignal(signal.SIGALRM)
    with time_limit(60, RewardError("late")):
        pass
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0 and signal.getsignal(signal.SIGALRM) == before
    with time_limit(None, RewardError("late")):
        assert signal.getitimer(signal.ITIMER_REAL)[0] == 0


def test_another_thread_has_no_time_limit() -> None:
    ended = []

    def call() -> None:
        with time_limit(0.01, RewardError("late")):
            time.sleep(0.05)
            ended.append(True)

    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    assert ended
