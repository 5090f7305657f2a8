"""Signals and time limits, also where the main thread hangs in C code and receives neither."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from helpers import forked_processes as forked

from sdpo.errors import RewardError
from sdpo.system.interrupt import Interruptions, Terminated
from sdpo.system.time_limit import time_limit


def test_signals_are_as_before_afterwards() -> None:
    before = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)]
    threads = threading.active_count()
    for number, kind in ((signal.SIGTERM, Terminated), (signal.SIGINT, KeyboardInterrupt)):
        with pytest.raises(kind), Interruptions(lambda: None):
            os.kill(os.getpid(), number)
            time.sleep(10)
    with Interruptions(lambda: None) as interruptions:
        interruptions.ignore()
        os.kill(os.getpid(), signal.SIGTERM)  # while the run is ending anyway
        time.sleep(0.01)
        with pytest.raises(Terminated):
            interruptions.check()
    assert [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)] == before
    assert threading.active_count() == threads


def hang_in_c() -> None:
    """Lock a mutex twice: no signal ends that."""
    libc = ctypes.CDLL(None)
    mutex = ctypes.create_string_buffer(128)
    libc.pthread_mutex_lock(mutex)
    print("hangs", flush=True)
    libc.pthread_mutex_lock(mutex)


def hang(limit: float | None) -> None:
    last_words = lambda: print("saved", file=sys.stderr, flush=True)  # noqa: E731
    with Interruptions(last_words, patience=0.3), time_limit(limit, RewardError("no answer in time")):
        hang_in_c()


def test_a_main_thread_that_hangs_in_c_is_ended_after_its_last_words(tmp_path: Path) -> None:
    log = tmp_path / "log"
    process = forked.start(hang, None, log=log)
    while "hangs" not in log.read_text() if log.exists() else True:
        time.sleep(0.01)
    os.kill(process.pid or 0, signal.SIGTERM)
    process.join(20)
    assert process.exitcode == 143 and "SIGTERM, but the call that is running does not return" in log.read_text()
    assert "saved" in log.read_text()
    process = forked.start(hang, 0.1, log=log)
    process.join(20)
    assert process.exitcode == 2 and "no answer in time" in log.read_text() and "saved" in log.read_text()


def fork_a_child_that_is_terminated() -> int:
    with Interruptions(lambda: None, patience=0.2) as interruptions:
        child = os.fork()
        if child == 0:
            time.sleep(60)
            os._exit(0)
        os.kill(child, signal.SIGTERM)
        _, status = os.waitpid(child, 0)
        time.sleep(0.5)
        interruptions.check()
    return 0 if os.WTERMSIG(status) == signal.SIGTERM else 1


def test_a_forked_child_dies_of_its_own_signal_and_its_parent_lives(tmp_path: Path) -> None:
    process = forked.start(fork_a_child_that_is_terminated, log=tmp_path / "log")
    process.join(20)
    assert process.exitcode == 0, (tmp_path / "log").read_text()


def test_fork_hooks_are_registered_when_a_run_begins_and_once() -> None:
    program = """
import os
registered = []
os.register_at_fork = lambda **hooks: registered.extend(h for h in hooks.values() if h.__module__.startswith("sdpo"))
import sdpo.rewards, sdpo.system.interrupt as interrupt
assert not registered
for _ in range(2):
    with interrupt.Interruptions(lambda: None):
        assert len(registered) == 3
"""
    subprocess.run([sys.executable, "-c", program], check=True)
