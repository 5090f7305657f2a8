"""Trains the runs of a comparison that are missing: here, or spread over processes of this machine."""

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

from sdpo.commands.compare.plan import Planned
from sdpo.errors import UserError
from sdpo.trainer import Trainer

Say = Callable[[str], None]


def train_missing(planned: Sequence[Planned], processes: int, say: Say) -> dict[str, str]:
    """Train what is not finished; a run that was interrupted goes on.

    Args:
        planned: all runs.
        processes: how many train at once.
        say: is told of each run's beginning and end.

    Returns:
        The runs that failed, by directory name: why.

    Raises:
        UserError: if a directory holds a run made with other settings; nothing is trained then.
    """
    if processes < 1:
        raise UserError("--processes must be at least 1")
    missing = [run for run in planned if not run.finished()]
    say(f"{len(planned) - len(missing)} of {len(planned)} runs are finished")
    return _one_by_one(missing, say) if processes == 1 else _spread(missing, processes, say)


def _one_by_one(missing: Sequence[Planned], say: Say) -> dict[str, str]:
    failed = {}
    for number, run in enumerate(missing, start=1):
        say(f"{run.path.name}: training, {number} of {len(missing)}")
        try:
            Trainer(run.config).train()
        except UserError as error:
            failed[run.path.name] = str(error)
        except Exception:  # a fault of one run, a reward's crash say, is told at the end and costs no other run
            failed[run.path.name] = traceback.format_exc().strip()
        if run.path.name in failed:
            say(f"{run.path.name}: failed: {failed[run.path.name]}")
        gc.collect()  # cycles may keep the model, and with it the device's memory
    return failed


@dataclass
class _Child:
    run: Planned
    slot: int
    process: subprocess.Popen[bytes]
    config: IO[str]
    errors: IO[str]


def _spread(missing: Sequence[Planned], processes: int, say: Say) -> dict[str, str]:
    waiting, working, failed = list(missing), list[_Child](), {}
    try:
        while waiting or working:
            while waiting and len(working) < processes:
                slot = next(i for i in range(processes) if i not in [c.slot for c in working])
                working.append(_start(waiting.pop(0), slot, processes))
                say(f"{working[-1].run.path.name}: training, {len(missing) - len(waiting)} of {len(missing)}")
            for child in [c for c in working if c.process.poll() is not None]:
                working.remove(child)
                name, message = child.run.path.name, _errors(child)
                if child.process.returncode:
                    failed[name] = message or f"exit code {child.process.returncode}"
                    say(f"{name}: failed: {failed[name]}")
                else:
                    say(f"{name}: finished" + (f"; {message}" if message else ""))
            time.sleep(0.1)
    finally:
        for child in working:
            child.process.terminate()  # at whatever point: the run goes on from its last checkpoint
        for child in working:
            child.process.wait()
    return failed


def _start(run: Planned, slot: int, processes: int) -> _Child:
    """An ordinary `sdpo train`, on its share of the threads, and on a GPU of its own where there are several."""
    # Of its own, until the process is done: the run's config.yaml is what `sdpo train` checks these settings against.
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


def _errors(child: _Child) -> str:
    """What the finished process wrote to stderr; of a user's error, the message alone."""
    with child.config, child.errors as file:
        file.seek(0)
        return file.read().rpartition("sdpo: error: ")[2].strip()
