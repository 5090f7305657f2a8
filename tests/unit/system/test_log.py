"""The form of messages on the command line, and in a user's own program."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest

from sdpo.system.log import configure, logger


@pytest.fixture
def unconfigured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logger, "handlers", [])
    monkeypatch.setattr(logger, "level", logging.NOTSET)


@pytest.mark.usefixtures("unconfigured")
def test_the_command_line_names_the_level_of_a_message_once(capsys: pytest.CaptureFixture[str]) -> None:
    configure()
    configure()
    logger.warning("%s is %d %% full", "the disk", 99)
    logger.error("no\nroom")
    logger.info("interrupted")
    said = capsys.readouterr()
    assert said.err == "sdpo: warning: the disk is 99 % full\nsdpo: error: no\nroom\nsdpo: interrupted\n"
    assert said.out == ""


def test_warnings_are_visible_in_a_program_that_sets_up_no_logging() -> None:
    code = "from sdpo.system.log import logger; logger.warning('look'); logger.info('hidden')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "look\n"
