"""Ending what does not end by itself: SIGTERM and Ctrl-C during a run, and calls that hang."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import Any, NoReturn

_overdue = ""  # what to say of the time limit that runs now, until the main thread hears of it


class Terminated(SystemExit):
    """SIGTERM came, as a scheduler sends it before it kills; unless caught, Python exits with code 143."""

    def __init__(self) -> None:
        super().__init__(128 + signal.SIGTERM)


class _TimeIsUp(BaseException):
    """No `Exception`, so that the code that is stopped cannot take it for one of its own."""


class Interruptions:
    """A context in which SIGTERM raises `Terminated`, and a main thread that does not listen is ended all the same.

    Python's signal handlers run between two of its instructions, never within a call of C code: a reward that hangs
    there, or a collective that waits for a dead process, would hold up a signal for ever. So a thread waits for every
    signal too, and when the main thread has not come to its handler in time, says so and ends the process.

    Args:
        last_words: called before the process is ended by the thread: saves what can be saved.
        patience: seconds that the main thread has.
    """

    def __init__(self, last_words: Callable[[], None], patience: float = 10.0) -> None:
        self.deaf = False  # signals are ignored: what they ask for is being done
        self._asked: type[BaseException] | None = None
        self._last_words = last_words
        self._patience = patience
        self._undo: list[Callable[[], Any]] = []

    def check(self) -> None:
        """Raise again what a signal raised and someone swallowed."""
        if self._asked is not None:
            raise self._asked

    def __enter__(self) -> Interruptions:
        if threading.current_thread() is not threading.main_thread():
            return self  # Python gives signals to the main thread alone
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        term, interrupt = (signal.signal(s, self._handle) for s in (signal.SIGTERM, signal.SIGINT))
        former = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        thread = threading.Thread(target=self._watch, args=(reading,), daemon=True)
        thread.start()
        self._undo = [
            lambda: signal.signal(signal.SIGTERM, term),
            lambda: signal.signal(signal.SIGINT, interrupt),
            lambda: signal.set_wakeup_fd(former),
            lambda: os.write(writing, b"\0"),  # ends the thread
            thread.join,
            lambda: os.close(writing),
            lambda: os.close(reading),
        ]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for undo in self._undo:
            undo()
        self._undo = []

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._asked = Terminated if number == signal.SIGTERM else KeyboardInterrupt
        if not self.deaf:
            raise self._asked

    def _watch(self, reading: int) -> None:
        handlers: dict[int, Any] = {
            signal.SIGTERM: self._handle,
            signal.SIGINT: self._handle,
            signal.SIGALRM: _time_is_up,
        }
        while (number := os.read(reading, 1)[0]) != 0:
            if number in handlers and signal.getsignal(number) == handlers[number]:  # else it is another's
                self._expect(number)

    def _expect(self, number: int) -> None:
        """End the process unless the main thread comes, or has come already, to its handler."""
        last = time.monotonic() + self._patience
        while _overdue if number == signal.SIGALRM else self._asked is None:
            if time.monotonic() > last:
                self._end(number)
            time.sleep(0.05)

    def _end(self, number: int) -> NoReturn:
        late = number == signal.SIGALRM
        cause = _overdue if late else f"{signal.Signals(number).name}, but the call that runs now does not return"
        print(f"sdpo: error: {cause}; the process is ended", file=sys.stderr, flush=True)
        try:
            self._last_words()
        finally:
            os._exit(2 if late else 128 + number)


@contextlib.contextmanager
def time_limit(seconds: float | None, error: Exception) -> Iterator[None]:
    """A context that raises `error` once the time is over; does nothing outside the main thread, which signals reach.

    Code that hangs in C is out of its reach; `Interruptions`, where it is active, then ends the process.
    """
    global _overdue
    if seconds is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGALRM, _time_is_up)
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


def _time_is_up(number: int, frame: FrameType | None) -> NoReturn:
    global _overdue
    _overdue = ""
    raise _TimeIsUp


_forking = threading.local()  # the signal mask of a thread, while it forks


def _active() -> bool:
    return isinstance(getattr(signal.getsignal(signal.SIGTERM), "__self__", None), Interruptions)


def _before_fork() -> None:
    """No signal reaches the child as long as it looks like its parent."""
    if _active():
        _forking.mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT, signal.SIGALRM})


def _after_fork() -> None:
    if (mask := vars(_forking).pop("mask", None)) is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _after_fork_in_child() -> None:
    """A forked child is no run: it dies of its signals, and does not wake the thread of its parent."""
    if _active():
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
    _after_fork()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork_in_child)
