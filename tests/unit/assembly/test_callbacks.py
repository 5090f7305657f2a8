"""Callbacks in order, and one that fails."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from sdpo.assembly.callbacks import Callback, Callbacks, RunState
from sdpo.errors import UserError


class Noting(Callback):
    def __init__(self, notes: list[str], name: str) -> None:
        self.notes, self.name = notes, name

    def on_epoch_end(self, state: RunState) -> None:
        self.notes.append(f"{self.name} {state.epoch}")


class Failing(Callback):
    def on_end(self, state: RunState) -> None:
        raise ValueError("no\nmore")


def state() -> RunState:
    parts: Any = None
    return RunState(3, 9, Path("run"), {"epoch": 3}, None, parts)


def test_all_are_called_in_order() -> None:
    notes: list[str] = []
    callbacks = Callbacks([Noting(notes, "a"), Callback(), Noting(notes, "b")])
    for call in (callbacks.on_evaluate, callbacks.on_epoch_end, callbacks.on_end):
        call(state())
    assert notes == ["a 3", "b 3"]


def test_the_one_that_fails_is_named() -> None:
    with pytest.raises(UserError, match=r"callback .*:Failing, on_end: ValueError: no\. Epoch 3 is saved: correct"):
        Callbacks([Failing()]).on_end(state())


def test_nothing_is_said_to_be_saved_after_the_base_models_evaluation() -> None:
    with pytest.raises(UserError, match=r"ValueError: no\. Correct the callback and rerun the command\.$"):
        Callbacks([Failing()]).on_end(dataclasses.replace(state(), epoch=0))
