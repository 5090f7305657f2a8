"""Processes that can be killed: forked from a server that has imported everything, so that a start costs nothing."""

from __future__ import annotations

import multiprocessing
import os
import sys
import traceback
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

_context: Any = None


def start(
    target: Callable[..., Any], *arguments: Any, log: Path, environment: dict[str, str] | None = None
) -> BaseProcess:
    """Begin `target(*arguments)` in a process of its own; what it prints goes to `log`."""
    global _context
    if _context is None:
        with_everything = {
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path]),
            "OMP_NUM_THREADS": "1",  # threads of OpenMP do not survive a fork
        }
        before = {name: os.environ.get(name) for name in with_everything}
        os.environ.update(with_everything)
        _context = multiprocessing.get_context("forkserver")
        _context.set_forkserver_preload(["helpers.preloaded_imports"])
        from multiprocessing import forkserver

        forkserver.ensure_running()
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
    process = _context.Process(target=_run, args=(target, arguments, log, environment or {}))
    process.start()
    return process  # type: ignore[no-any-return]


def _run(target: Callable[..., Any], arguments: tuple[Any, ...], log: Path, environment: dict[str, str]) -> None:
    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ.update(environment)
    try:
        code = target(*arguments)
    except SystemExit as stop:
        code = stop.code
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 0)
