"""Exit codes and messages of the entry point."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import NoReturn

import pytest

from sdpo.cli import main as entry
from sdpo.errors import UserError
from sdpo.system.interrupt import Terminated


def raises(error: BaseException) -> Callable[[argparse.Namespace], NoReturn]:
    def run(arguments: argparse.Namespace) -> NoReturn:
        raise error

    return run


def call(monkeypatch: pytest.MonkeyPatch, run: Callable[[argparse.Namespace], int | None]) -> int:
    monkeypatch.setattr(entry, "parse", lambda argv: argparse.Namespace(run=run))
    return entry.main([])


def test_a_handlers_code_is_the_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    assert call(monkeypatch, lambda arguments: None) == 0
    assert call(monkeypatch, lambda arguments: 1) == 1


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (UserError("api_key=hunter2secret is wrong"), 2, "sdpo: error: api_key=[hidden] is wrong\n"),
        (KeyboardInterrupt(), 130, "sdpo: interrupted: rerun the command\n"),
        (KeyboardInterrupt("rerun to resume"), 130, "sdpo: interrupted: rerun to resume\n"),
        (Terminated(), 143, "sdpo: interrupted: rerun the command\n"),
    ],
)
def test_errors_become_messages_and_codes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: BaseException, code: int, message: str
) -> None:
    assert call(monkeypatch, raises(error)) == code
    assert capsys.readouterr().err == message


def test_other_errors_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ZeroDivisionError):
        call(monkeypatch, raises(ZeroDivisionError()))


@pytest.mark.parametrize("rank", ["0", "1"])
def test_of_several_processes_the_failing_one_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], rank: str
) -> None:
    for name, value in {"WORLD_SIZE": "2", "RANK": rank, "LOCAL_RANK": rank}.items():
        monkeypatch.setenv(name, value)
    assert call(monkeypatch, raises(UserError("no room"))) == 2
    said = capsys.readouterr().err
    assert said == ("sdpo: error: no room [process 0 of 2]\n" if rank == "0" else "")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "--output-dir", "x", "epochs=1", "emoji"], ["epochs=1", "emoji"]),
        (["train", "emoji", "--dry-run", "epochs=1"], ["emoji", "epochs=1"]),
        (["doctor"], []),
    ],
)
def test_settings_may_follow_options(arguments: list[str], words: list[str]) -> None:
    assert entry.parse(arguments).words == words


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--epochs", "3"], "unrecognized arguments: --epochs; settings look like train.learning_rate=3e-5"),
        (["report", "a", "b"], "unrecognized arguments: b\n"),
        ([], "the following arguments are required: COMMAND"),
    ],
)
def test_wrong_arguments_exit_with_code_2(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as stop:
        entry.parse(arguments)
    assert stop.value.code == 2 and message in capsys.readouterr().err
