"""The lock of a run's directory."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from helpers import forked_processes as forked

from sdpo.system.lock import RunLock


def hold(run: Path) -> None:
    with RunLock(run):
        print("holds", flush=True)
        time.sleep(60)


def test_a_lock_names_its_holder_and_ends_with_it(tmp_path: Path) -> None:
    log = tmp_path / "log"
    process = forked.start(hold, tmp_path, log=log)
    while not log.exists() or "holds" not in log.read_text():
        time.sleep(0.01)
    with pytest.raises(Exception, match=f"another run is going on .*process {process.pid} on "), RunLock(tmp_path):
        pass
    process.kill()
    process.join()
    with RunLock(tmp_path):
        assert f"process {os.getpid()} on" in (tmp_path / ".lock").read_text()
