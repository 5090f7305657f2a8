"""Measures how long the command line takes to answer: CPU seconds of each command, the median of five processes.

    python tools/startup.py

The limit is 0.4 s on an idle core; `--help`, listings and configuration errors import no torch.
"""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys

COMMANDS = ("--help", "--version", "presets", "rewards", "train emoji epoch=1")
REPETITIONS = 5
LIMIT = 0.4


def cpu_seconds(arguments: list[str]) -> float:
    """User and system time of one process that runs the command line."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "sdpo", *arguments], capture_output=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def main() -> int:
    """Print a line a command; returns 1 if one took longer than the limit."""
    slowest = 0.0
    for command in COMMANDS:
        seconds = statistics.median(cpu_seconds(command.split()) for _ in range(REPETITIONS))
        print(f"sdpo {command:20} {seconds:.2f} s", flush=True)
        slowest = max(slowest, seconds)
    return int(slowest > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
