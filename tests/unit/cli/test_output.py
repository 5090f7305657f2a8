"""The output of the command line, and a reader that stops to read it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from sdpo.cli.output import say, show
from sdpo.cli.tables import score_table


def test_a_reader_that_closes_the_pipe_ends_the_command_without_a_traceback() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([sys.executable, "-m", "sdpo", "rewards"], stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert done.returncode == 1 and done.stderr == ""


def test_brackets_and_colons_of_prompts_are_printed_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    prompt = "a [red]cat[/red] :cat:"
    say(prompt)
    show(score_table([{"image": "a.png", "prompt": prompt, "colorfulness": 1.0}], ["colorfulness"]))
    said = capsys.readouterr().out
    assert said.startswith(f"{prompt}\n") and prompt in said.splitlines()[-2] and "1.0000" in said
