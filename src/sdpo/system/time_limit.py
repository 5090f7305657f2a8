"""A time limit for calls that may hang, such as a reward."""

from __future__ import annotations

import contextlib
import functools
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

from sdpo.system.log import logger
from sdpo.system.platform import has_timers

_overdue = ""  # the message of the time limit that is running, until the main thread handles its signal


class _TimeIsUp(BaseException):
    """Not an `Exception`, so that the interrupted code cannot catch it as one of its own errors."""


@contextlib.contextmanager
def time_limit(seconds: float | None, error: Exception) -> Iterator[None]:
    """Enter a context that raises an error once its time is over.

    The limit holds in the main thread alone, as only that thread receives signals. It cannot end code that hangs in C;
    `Interruptions`, where that is active, then ends the process. On a platform without timers (Windows) there is no
    limit, which a warning says once.

    Args:
        seconds: the time that the context may take; None sets no limit.
        error: the error to raise.
    """
    global _overdue
    if seconds is None or threading.current_thread() is not threading.main_thread() or not _timers():
        yield
        return
    before = signal.signal(signal.SIGALRM, raise_time_is_up)
    _overdue = str(error)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except _TimeIsUp:
        raise error from None
    finally:
        _overdue = ""
        signal.signal(signal.SIGALRM, before)


def overdue() -> str:
    """The message of the time limit that is running; empty where none is, or its signal has been handled."""
    return _overdue


def raise_time_is_up(number: int, frame: FrameType | None) -> NoReturn:
    """Interrupt the main thread: the signal handler while a time limit is running."""
    global _overdue
    _overdue = ""
    raise _TimeIsUp


@functools.cache
def _timers() -> bool:
    """Whether the platform has timers; warns, once, where it has none."""
    if not (found := has_timers()):
        logger.warning("this system has no timers: the time limit of rewards (scoring.timeout) is not enforced")
    return found
