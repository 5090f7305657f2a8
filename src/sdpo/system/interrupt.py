"""SIGTERM and Ctrl-C during a run, also while the main thread hangs in C code."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, NoReturn

from sdpo.system import platform
from sdpo.system.log import logger
from sdpo.system.time_limit import overdue, raise_time_is_up


class Terminated(SystemExit):
    """SIGTERM arrived, which a scheduler sends before it kills; unless caught, Python exits with code 143."""

    def __init__(self) -> None:
        super().__init__(128 + signal.SIGTERM)


class Interruptions:
    """A context in which SIGTERM raises `Terminated`, and a main thread that does not respond is ended all the same.

    Python runs signal handlers between two of its own instructions, never within a call of C code: a reward that hangs
    there, or a collective that waits for a dead process, would delay a signal for ever. A thread therefore waits for
    every signal as well. When the main thread has not run its handler in time, the thread logs an error and ends the
    process. On Windows there is no such thread, only the handlers.

    Args:
        last_words: called by the thread before it ends the process, to save what can be saved.
        patience: seconds that the main thread has to run its handler.
    """

    def __init__(self, last_words: Callable[[], None], patience: float = 10.0) -> None:
        self._ignored = False
        self._asked: type[BaseException] | None = None
        self._last_words = last_words
        self._patience = patience
        self._undo = contextlib.ExitStack()

    def check(self) -> None:
        """Raise again what a signal raised, in case other code caught it."""
        if self._asked is not None:
            raise self._asked

    def ignore(self) -> None:
        """Let further signals raise nothing: the run is ending, which is what they ask for."""
        self._ignored = True

    def __enter__(self) -> Interruptions:
        if threading.current_thread() is not threading.main_thread():
            return self  # Python handles signals in the main thread alone
        _register_fork_hooks()
        with contextlib.ExitStack() as undo:
            if platform.has_wakeup_pipe():
                self._start_watching(undo)
            for number in (signal.SIGTERM, signal.SIGINT):
                undo.callback(signal.signal, number, signal.signal(number, self._handle))
            self._undo = undo.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._undo.close()

    def _start_watching(self, undo: contextlib.ExitStack) -> None:
        """Start the thread that Python's signal handling wakes through a pipe.

        Args:
            undo: receives what ends the thread and closes the pipe.
        """
        reading, writing = os.pipe()
        undo.callback(os.close, reading)
        undo.callback(os.close, writing)
        os.set_blocking(writing, False)
        thread = threading.Thread(target=self._watch, args=(reading,), daemon=True)
        thread.start()
        undo.callback(thread.join)
        undo.callback(os.write, writing, b"\0")  # ends the thread
        undo.callback(signal.set_wakeup_fd, signal.set_wakeup_fd(writing, warn_on_full_buffer=False))

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._asked = Terminated if number == signal.SIGTERM else KeyboardInterrupt
        if not self._ignored:
            raise self._asked

    def _watch(self, reading: int) -> None:
        """Wait for signals until a zero byte arrives."""
        handlers: dict[int, Any] = {signal.SIGTERM: self._handle, signal.SIGINT: self._handle}
        if platform.has_timers():
            handlers[signal.SIGALRM] = raise_time_is_up
        while (number := os.read(reading, 1)[0]) != 0:
            if number in handlers and signal.getsignal(number) == handlers[number]:  # else other code handles it
                self._expect(number)

    def _expect(self, number: int) -> None:
        """End the process unless the main thread runs its handler in time, or has run it already."""
        last = time.monotonic() + self._patience
        while self._asked is None if number in (signal.SIGTERM, signal.SIGINT) else overdue():
            if time.monotonic() > last:
                self._end(number)
            time.sleep(0.05)

    def _end(self, number: int) -> NoReturn:
        signalled = number in (signal.SIGTERM, signal.SIGINT)
        stuck = f"{signal.Signals(number).name}, but the call that is running does not return"
        logger.error("%s; the process is ended", stuck if signalled else overdue())
        try:
            self._last_words()
        finally:
            os._exit(128 + number if signalled else 2)


_forking = threading.local()  # the signal mask of a thread while it forks


@functools.cache
def _register_fork_hooks() -> None:
    """Make children that are forked during a run die of their signals; hooks cannot be removed, so only once."""
    platform.at_fork(_before_fork, _after_fork, _after_fork_in_child)


def _active() -> bool:
    return isinstance(getattr(signal.getsignal(signal.SIGTERM), "__self__", None), Interruptions)


def _before_fork() -> None:
    """Keep signals from the child as long as it has its parent's handlers."""
    if _active():
        alarm = {signal.SIGALRM} if platform.has_timers() else set()
        _forking.mask = platform.block_signals({signal.SIGTERM, signal.SIGINT} | alarm)


def _after_fork() -> None:
    platform.restore_signals(vars(_forking).pop("mask", None))


def _after_fork_in_child() -> None:
    """Give the child the default handlers, and keep its signals from waking its parent's thread."""
    if _active():
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
    _after_fork()
