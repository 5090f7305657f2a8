"""Batch sizes against the number of processes."""

from __future__ import annotations

import pytest

from sdpo import Config
from sdpo.assembly.checks import check_processes
from sdpo.errors import UserError


def test_the_numbers_that_are_proposed_are_legal() -> None:
    for batch in range(1, 13):
        for processes in range(1, 9):
            config = Config.load("emoji", train={"batch_size": batch}, sample={"prompts_per_epoch": 3 * batch})
            if batch % processes == 0:
                check_processes(config, processes)
                continue
            with pytest.raises(UserError, match="must be a multiple") as refusal:
                check_processes(config, processes)
            proposed = dict(w.rstrip(".,").split("=") for w in str(refusal.value).split() if "=" in w)
            legal = Config.load("emoji", [f"{key}={value}" for key, value in proposed.items()])
            check_processes(legal, processes)
