"""The parts of the operating system that only some platforms have, and what sdpo does without them."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

SUPPORT = (
    "Linux is tested. On macOS and Windows every module can be imported, and the listings and messages of the command "
    "line work, as far as tests on Linux without the POSIX parts can show; training there is untested."
)
"""The platforms that sdpo supports, and how far."""

_WINDOWS = sys.platform == "win32"


def has_timers() -> bool:
    """Whether a timer can interrupt the main thread (POSIX); without one, no call has a time limit."""
    return hasattr(signal, "SIGALRM") and hasattr(signal, "setitimer")


def has_wakeup_pipe() -> bool:
    """Whether Python can report signals through a pipe (POSIX); Windows accepts only sockets there."""
    return not _WINDOWS


def at_fork(before: Callable[[], object], in_parent: Callable[[], object], in_child: Callable[[], object]) -> None:
    """Register functions that run around every later `fork`; does nothing where processes cannot fork (Windows)."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(before=before, after_in_parent=in_parent, after_in_child=in_child)


def block_signals(numbers: set[signal.Signals]) -> set[int | signal.Signals] | None:
    """Keep signals from the calling thread.

    Args:
        numbers: the signals.

    Returns:
        The thread's previous mask, for `restore_signals`; None where threads have no mask (Windows).
    """
    return signal.pthread_sigmask(signal.SIG_BLOCK, numbers) if hasattr(signal, "pthread_sigmask") else None


def restore_signals(mask: set[int | signal.Signals] | None) -> None:
    """Set the calling thread's signal mask to what `block_signals` returned."""
    if mask is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def flush_to_disk(path: Path) -> None:
    """Flush a file or a folder to the disk; a folder holds the names of its files.

    Windows cannot flush folders, which are left out there, and flushes a file only if it is open for writing.
    """
    if _WINDOWS and path.is_dir():
        return
    handle = os.open(path, os.O_RDWR if _WINDOWS else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def peak_resident_bytes() -> int:
    """The largest memory that this process has had resident, in bytes; 0 where the platform does not tell (Windows)."""
    try:
        import resource
    except ImportError:
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
