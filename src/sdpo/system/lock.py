"""One run at a time in a directory."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import sys
from pathlib import Path
from types import TracebackType
from typing import IO

from sdpo.errors import UserError


class RunLock:
    """A lock of the operating system on a run's directory; it ends with the process that holds it, however that ends.

    Args:
        run_dir: exists.

    Raises:
        UserError: if files cannot be written there.
    """

    def __init__(self, run_dir: Path) -> None:
        self.path = run_dir / ".lock"
        self._file: IO[str] | None = None

    def __enter__(self) -> RunLock:
        try:
            file = self.path.open("a+", encoding="utf-8")
        except OSError as error:
            raise UserError(f"--output-dir {self.path.parent} cannot be written to: {error}") from error
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                file.seek(0)
                holder = file.read().strip() or "another process"
                file.close()
                raise UserError(
                    f"another run is going on in {self.path.parent}: {holder}. Wait for it, end it, or name another "
                    "--output-dir."
                ) from error
            print(f"sdpo: warning: {self.path} cannot be locked ({error}): see to it that no other run uses "
                  "the directory", file=sys.stderr)  # fmt: skip
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        self._file = file
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
