"""Joining the processes of a launch: the order of the checks."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sdpo import Config
from sdpo.assembly import processes as module
from sdpo.assembly.processes import join_processes
from sdpo.distributed.launch import FSDP2
from sdpo.errors import UserError


def launched(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    joined = SimpleNamespace(count=count, device=torch.device("cpu"))
    monkeypatch.setattr(module, "Processes", lambda device, sharded: joined)
    monkeypatch.setattr(module.launch, "requested", lambda device: FSDP2())


def test_an_unsupported_launch_is_refused_before_the_processes_are_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    def join(*arguments: Any, **keywords: Any) -> None:
        raise AssertionError("joined")

    monkeypatch.setattr(module, "Processes", join)
    monkeypatch.setenv("ACCELERATE_USE_MEGATRON_LM", "true")
    with pytest.raises(UserError, match="Megatron-LM"):
        join_processes(Config.load("emoji"))


def test_one_process_shards_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    launched(monkeypatch, 1)
    assert join_processes(Config.load("emoji", model={"compile": True}))[1] is None


def test_several_processes_are_checked_against_the_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    launched(monkeypatch, 2)
    even = {"train": {"batch_size": 4}, "sample": {"prompts_per_epoch": 8}}
    assert join_processes(Config.load("emoji", **even))[1] == FSDP2()
    with pytest.raises(UserError, match="model.compile=true"):
        join_processes(Config.load("emoji", model={"compile": True}, **even))
    with pytest.raises(UserError, match="multiple of the 2 processes"):
        join_processes(Config.load("emoji", train={"batch_size": 3}, sample={"prompts_per_epoch": 6}))
