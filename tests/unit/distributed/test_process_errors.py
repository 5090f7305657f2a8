"""Errors of lost processes and devices are explained, and torch without its distributed package is enough to import."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch

from sdpo.distributed.processes import check_device, explaining_lost_process
from sdpo.errors import LostProcessError, UserError


def test_a_lost_process_without_a_message_is_named_by_its_error() -> None:
    with pytest.raises(LostProcessError, match=r"another process of this run has ended.*\(DistBackendError\)"):
        with explaining_lost_process():
            raise torch.distributed.DistBackendError("")
    with pytest.raises(RuntimeError, match="^$"), explaining_lost_process():
        raise RuntimeError("")


def test_a_device_that_fails_without_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(torch, "empty", fail)
    with pytest.raises(UserError, match=r"scoring.device=cuda: not a device of this machine \(AssertionError\)"):
        check_device("cuda", "scoring.device")


WITHOUT_DISTRIBUTED = """
import importlib, pkgutil, sys, torch
torch.distributed.is_available = lambda: False
for name in ("device_mesh", "fsdp", "tensor"):
    sys.modules[f"torch.distributed.{name}"] = None
import sdpo.distributed
for module in pkgutil.walk_packages(sdpo.distributed.__path__, "sdpo.distributed."):
    importlib.import_module(module.name)
    print(module.name)
"""


def test_every_module_is_imported_where_torch_has_no_distributed_package() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT_DISTRIBUTED], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert {"sdpo.distributed.fsdp2", "sdpo.distributed.fsdp2_optimizer"} <= set(done.stdout.split())
