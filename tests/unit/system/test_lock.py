"""The lock of a run's directory."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import forked_processes as forked

from sdpo.errors import UserError
from sdpo.system.lock import RunLock


def hold(path: Path, forks: bool) -> None:
    with RunLock(path):
        if forks and os.fork() == 0:
            print(f"child {os.getpid()}", flush=True)
            time.sleep(60)
            os._exit(0)
        print("holds", flush=True)
        time.sleep(60)


@pytest.mark.parametrize("forks", [False, True])
def test_a_lock_names_its_holder_and_ends_with_it(tmp_path: Path, forks: bool) -> None:
    log, path = tmp_path / "log", tmp_path / ".lock"
    process = forked.start(hold, path, forks, log=log)
    while not log.exists() or "holds" not in log.read_text() or forks and "child" not in log.read_text():
        time.sleep(0.01)
    for _ in range(2):  # the first attempt leaves the holder's name alone
        with pytest.raises(UserError, match=f"another run is going on .*process {process.pid} on "), RunLock(path):
            pass
    process.kill()
    process.join()
    with RunLock(path):  # whatever the children that outlive it
        assert f"process {os.getpid()} on" in path.read_text()
    if forks:
        os.kill(int(log.read_text().split("child ")[1].split()[0]), signal.SIGKILL)


def test_a_lock_can_be_taken_again(tmp_path: Path) -> None:
    lock = RunLock(tmp_path / ".lock")
    for _ in range(2):
        with lock, pytest.raises(UserError, match="another run is going on"), RunLock(tmp_path / ".lock"):
            pass


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_warned_of(tmp_path: Path, code: int) -> None:
    program = f"""
import fcntl
def flock(*arguments):
    raise OSError({code}, "no locks here")
fcntl.flock = flock
from pathlib import Path
from sdpo.system.lock import RunLock
with RunLock(Path("run.lock")):
    print("used")
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "used\n"
    assert (
        "run.lock cannot be locked" in done.stderr and "make sure that no other run uses the directory" in done.stderr
    )
    assert done.stderr.count("\n") == 1, done.stderr


def test_a_directory_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=f"--output-dir {tmp_path}/file cannot be written to"):
        RunLock(tmp_path / "file" / ".lock").__enter__()
