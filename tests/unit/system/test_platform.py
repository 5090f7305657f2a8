"""sdpo without the POSIX parts of the operating system."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from helpers.paths import REPOSITORY

import sdpo
from sdpo.system import platform


@pytest.mark.slow
def test_every_module_and_the_messages_work_without_posix() -> None:
    command = [sys.executable, "-m", "helpers.without_posix"]
    done = subprocess.run(command, cwd=REPOSITORY / "tests", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    files = [path for path in Path(sdpo.__file__).parent.rglob("*.py") if path.name not in ("__main__.py",)]
    imported = int(done.stdout.split(" modules")[0].splitlines()[-1])
    assert imported > 0.9 * len(files), done.stdout
    for line in (
        "sdpo --version: exit code 0",
        "sdpo presets: exit code 0",
        "sdpo rewards: exit code 0",
        "sdpo train emoji epoch=1: exit code 2",
        "text 0 terminated",
    ):
        assert line in done.stdout.splitlines(), done.stdout
    assert "unknown key 'epoch'" in done.stderr
    assert done.stderr.count("the time limit of rewards (scoring.timeout) is not enforced") == 1, done.stderr


def test_memory_is_told_in_bytes() -> None:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    assert platform.peak_resident_bytes() == pytest.approx(1024 * int(line.split()[1]), rel=0.05)
