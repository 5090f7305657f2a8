"""The warnings that a report leads with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers.learning_run import write_learning_run
from helpers.written_runs import change_evaluation

from sdpo.report import write_report
from sdpo.report.reader import read_run
from sdpo.report.warnings import collapse_warnings


def warnings(run: Path, before: dict[str, Any], after: dict[str, Any], counts: tuple[int, int] = (2, 2)) -> list[str]:
    for epoch, monitors, count in ((0, before, counts[0]), (10, after, counts[1])):
        change_evaluation(run, epoch, monitors=monitors, monitored=count)
    return collapse_warnings(read_run(run))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_learning_run(tmp_path / "run", epochs=10)


def test_a_monitor_that_fell_leads_the_report(run: Path) -> None:
    before = {"palette": {"4": 0.2, "8": 0.244}, "diversity": {"8": 0.4}}
    after = {"palette": {"4": 0.19, "8": 0.103}, "diversity": {"8": 0.3}}
    first, second = warnings(run, before, after)
    assert "(diversity) fell below the base model's by 25 % at 8 steps" in first
    assert "(palette) fell below the base model's by 58 % at 8 steps" in second and "4 steps" not in second
    page = write_report(run).read_text(encoding="utf-8")
    assert page.index("Warning:") < page.index("<h2>"), "before the first section"


def test_what_is_steady_or_cannot_be_compared_warns_of_nothing(run: Path) -> None:
    steady = {"palette": {"8": 0.2}, "kl_to_base": {"8": 0.5}}
    assert warnings(run, steady, {"palette": {"8": 0.17}, "kl_to_base": {"8": 0.0}}) == []
    assert warnings(run, {"palette": {"8": 0.0}}, {"palette": {"8": 0.0}}) == []
    assert warnings(run, {"palette": {"8": 0.2}}, {"palette": {"8": 0.1}}, counts=(1, 2)) == []
    assert "Warning:" not in write_report(run).read_text(encoding="utf-8")


def test_a_judge_that_recognises_less_warns(run: Path) -> None:
    n = 40
    for epoch, share in ((0, 1.0), (10, 0.5)):
        judged = [float(i < share * n) for i in range(n)]
        scores = {"emoji": {"1": [1.0] * n}, "emoji_judge": {"1": judged}}
        change_evaluation(run, epoch, prompts=["p"] * n, seeds=list(range(n)), scores=scores)
    (found,) = collapse_warnings(read_run(run))
    assert "emoji_judge recognises fewer images than before at 1 step" in found
