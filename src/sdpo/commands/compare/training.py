"""Trains the missing runs of a comparison, in this process or in several child processes."""

from __future__ import annotations

import gc
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from os import environ
from typing import IO

import torch

from sdpo.commands.compare.plan import PlannedRun
from sdpo.errors import UserError
from sdpo.trainer import Trainer

Say = Callable[[str], None]
"""Receives one line of text for the user."""


def train_missing(planned: Sequence[PlannedRun], processes: int, say: Say) -> dict[str, str]:
    """Train all runs that are not finished; an interrupted run is resumed.

    Args:
        planned: all runs of the comparison.
        processes: number of runs that train at the same time.
        say: receives a line at the beginning and at the end of each run.

    Returns:
        The error message of each run that failed, by the name of its directory.

    Raises:
        UserError: if `processes` is below 1, or a directory holds a run with other settings; nothing is trained then.
    """
    if processes < 1:
        raise UserError("--processes must be at least 1")
    missing = [run for run in planned if not run.finished()]
    say(f"{len(planned) - len(missing)} of {len(planned)} runs are finished")
    return _train_here(missing, say) if processes == 1 else _train_in_children(missing, processes, say)


def _train_here(missing: Sequence[PlannedRun], say: Say) -> dict[str, str]:
    failed = {}
    for number, run in enumerate(missing, start=1):
        name = run.path.name
        say(f"{name}: training, {number} of {len(missing)}")
        try:
            Trainer(run.config).train()
        except UserError as error:
            failed[name] = str(error)
        except Exception:  # a crash of one run, such as a reward's, is reported at the end and must not end the others
            failed[name] = traceback.format_exc().strip()
        if name in failed:
            say(f"{name}: failed: {failed[name]}")
        gc.collect()  # reference cycles may keep the model, and with it the device's memory
    return failed


@dataclass
class _Child:
    """A run that trains in a process of its own.

    Attributes:
        run: the run.
        slot: a number below the number of processes that no other child has at the time.
        process: the child process.
        config: the temporary file with the run's configuration.
        errors: the temporary file that receives the child's stderr.
    """

    run: PlannedRun
    slot: int
    process: subprocess.Popen[bytes]
    config: IO[str]
    errors: IO[str]


def _train_in_children(missing: Sequence[PlannedRun], processes: int, say: Say) -> dict[str, str]:
    waiting, working, failed = list(missing), list[_Child](), {}
    try:
        while waiting or working:
            while waiting and len(working) < processes:
                slot = next(i for i in range(processes) if i not in [c.slot for c in working])
                working.append(_start(waiting.pop(0), slot, processes))
                say(f"{working[-1].run.path.name}: training, {len(missing) - len(waiting)} of {len(missing)}")
            for child in [c for c in working if c.process.poll() is not None]:
                working.remove(child)
                name, message = child.run.path.name, _error_message(child)
                if child.process.returncode:
                    failed[name] = message or f"exit code {child.process.returncode}"
                    say(f"{name}: failed: {failed[name]}")
                else:
                    say(f"{name}: finished" + (f"; {message}" if message else ""))
            time.sleep(0.1)
    finally:
        for child in working:
            child.process.terminate()  # safe at any time: the run resumes from its last checkpoint
        for child in working:
            child.process.wait()
    return failed


def _start(run: PlannedRun, slot: int, processes: int) -> _Child:
    """Start `sdpo train` with its share of the CPU threads and, if there are several GPUs, on one of them."""
    # A temporary file: `sdpo train` compares these settings with the config.yaml in the run's directory.
    config = tempfile.NamedTemporaryFile("w", suffix=".yaml", encoding="utf-8")
    config.write(run.config.to_yaml())
    config.flush()
    command = [sys.executable, "-m", "sdpo", "train", config.name, "--output-dir", str(run.path)]
    if run.config.device == "auto" and torch.cuda.device_count() > 1:
        command.append(f"device=cuda:{slot % torch.cuda.device_count()}")
    threads = str(max(1, torch.get_num_threads() // processes))
    errors = tempfile.TemporaryFile("w+", encoding="utf-8")
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=errors, env={**environ, "OMP_NUM_THREADS": threads}
    )
    return _Child(run, slot, process, config, errors)


def _error_message(child: _Child) -> str:
    """Return what a finished process wrote to stderr, or the message alone if it reported a user's error."""
    with child.config, child.errors as file:
        file.seek(0)
        return file.read().rpartition("sdpo: error: ")[2].strip()
