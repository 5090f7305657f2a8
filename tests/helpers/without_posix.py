"""Run as a module, this uses sdpo in a Python that lacks the POSIX parts which Windows lacks.

It stands in for Windows as far as Linux can: modules and functions are removed, and `sys.platform` says `win32`, while
file system and processes stay those of Linux. Other libraries are imported before: they look after themselves.
"""

from __future__ import annotations

import asyncio  # noqa: F401
import importlib
import os
import pkgutil
import signal
import stat
import sys
import tempfile
import threading
import time
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any

LIBRARIES = (
    "accelerate", "diffusers", "filelock", "matplotlib.pyplot", "numpy", "peft", "PIL.Image", "pydantic", "requests",
    "rich.progress", "safetensors.torch", "torch.distributed.fsdp", "transformers", "yaml",
)  # fmt: skip
MODULES = ("fcntl", "resource", "pwd", "grp", "termios")
OPTIONAL = ("bitsandbytes", "deepspeed", "ftfy", "ray", "swanlab", "tensorboard", "torchao", "trackio", "wandb")


class Blocker(MetaPathFinder):
    """Finds no POSIX module, and lets other finders look for every other."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name in MODULES:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def remove_posix() -> None:
    """Take away the modules, timers, signal masks, fork hooks and flushing of folders."""
    sys.meta_path.insert(0, Blocker())
    for name in MODULES:
        sys.modules.pop(name, None)
    for name in ("SIGALRM", "setitimer", "getitimer", "alarm", "pthread_sigmask", "SIGKILL"):
        delattr(signal, name)
    for name in ("register_at_fork", "fork", "getuid", "uname", "set_blocking"):
        delattr(os, name)
    sys.platform = "win32"
    fsync = os.fsync

    def fsync_files(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise PermissionError("folders cannot be flushed")
        fsync(handle)

    os.fsync = fsync_files


def import_all() -> None:
    """Import every module of sdpo, apart from those whose optional library is not installed."""
    import sdpo

    def skip(name: str) -> None:
        if not isinstance(error := sys.exc_info()[1], ModuleNotFoundError) or error.name not in OPTIONAL:
            raise

    for module in pkgutil.walk_packages(sdpo.__path__, "sdpo.", onerror=skip):
        if module.name != "sdpo.__main__":  # runs the command line
            try:
                importlib.import_module(module.name)
            except ModuleNotFoundError:
                skip(module.name)


def use_system_parts(folder: Path) -> None:
    """Write files, set a time limit, hold the lock and end a run by SIGTERM."""
    from sdpo.system.durable import replace_folder, write_whole
    from sdpo.system.interrupt import Interruptions, Terminated
    from sdpo.system.lock import RunLock
    from sdpo.system.platform import peak_resident_bytes
    from sdpo.system.time_limit import time_limit

    (folder / "new").mkdir()
    write_whole(folder / "new" / "file", "text")
    for _ in range(2):
        with RunLock(folder / ".lock"), time_limit(0.01, TimeoutError()):
            time.sleep(0.02)
    replace_folder(folder / "new", folder / "result")
    threads = threading.active_count()
    try:
        with Interruptions(lambda: None):
            assert threading.active_count() == threads
            signal.raise_signal(signal.SIGTERM)
    except Terminated:
        print((folder / "result" / "file").read_text(), peak_resident_bytes(), "terminated")


def main() -> None:
    for library in LIBRARIES:
        importlib.import_module(library)
    remove_posix()
    import_all()
    print(len([name for name in sys.modules if name.startswith("sdpo.")]), "modules", flush=True)
    from sdpo.cli.main import main as sdpo

    for command in ("--version", "presets", "rewards", "train emoji epoch=1"):
        try:
            code = sdpo(command.split())
        except SystemExit as stop:
            code = stop.code
        print(f"sdpo {command}: exit code {code}", flush=True)

    with tempfile.TemporaryDirectory() as folder:
        use_system_parts(Path(folder))


if __name__ == "__main__":
    main()
