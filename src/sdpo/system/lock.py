"""A lock that admits one process at a time to a run's directory."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from types import TracebackType

from filelock import FileLock, Timeout

from sdpo.errors import UserError
from sdpo.system.log import logger


class RunLock:
    """Holds the operating system's lock on a file; the lock ends with the process, however the process ends.

    Where the file system has no locks, a warning is logged and the directory is used unlocked.

    Args:
        path: the file to lock. Its folder exists; the file is created, and names the process that holds the lock.

    Raises:
        UserError: on entering, if the file cannot be written, or another process holds the lock.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        # A soft lock, which is a file alone, would outlive a killed process.
        self._lock = FileLock(path, timeout=0, fallback_to_soft=False, on_acquired=_write_holder)

    def __enter__(self) -> RunLock:
        try:
            self.path.touch()
        except OSError as error:
            raise UserError(f"--output-dir {self.path.parent} cannot be written to: {error}") from error
        try:
            self._lock.acquire()
        except Timeout as error:
            raise UserError(
                f"another run is going on in {self.path.parent}: {self._holder()}. Wait for it, end it, or name "
                "another --output-dir."
            ) from error
        except (OSError, NotImplementedError) as error:
            logger.warning("%s cannot be locked (%s): make sure that no other run uses the directory", self.path, error)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.release()

    def _holder(self) -> str:
        """The process that holds the lock; Windows does not let others read a locked file."""
        try:
            return self.path.read_text(encoding="utf-8").strip() or "another process"
        except OSError:
            return "another process"


def _write_holder(file: int) -> None:
    """Write the name of this process into the locked file.

    Args:
        file: the descriptor of the file.
    """
    os.ftruncate(file, 0)
    os.write(file, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
