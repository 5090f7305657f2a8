"""Several processes that make one run."""

from __future__ import annotations

import socket
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from helpers import forked_processes as forked


def launch(count: int, target: Any, *arguments: Any, logs: Path, **environment: str) -> list[BaseProcess]:
    """Begin `target` in processes that meet as those of `accelerate launch` do, without its seconds of imports."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {
        "WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "ACCELERATE_USE_CPU": "true",
    }
    logs.mkdir(exist_ok=True)
    return [
        forked.start(
            target,
            *arguments,
            log=logs / str(rank),
            environment={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank), **environment},
        )
        for rank in range(count)
    ]


def ended(processes: list[BaseProcess], logs: Path) -> tuple[list[int | None], list[str]]:
    """Exit codes and what was printed, by rank."""
    for process in processes:
        process.join(90)
    texts = [(logs / str(rank)).read_text() for rank in range(len(processes))]
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    return codes, texts
