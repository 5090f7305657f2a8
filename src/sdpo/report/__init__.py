"""Turns a run's directory into a report: `report.html`, `curves.png` and `samples.png`."""

from __future__ import annotations

from pathlib import Path

from sdpo.report.curves_png import draw_curves
from sdpo.report.page import render_page
from sdpo.report.reader import read_run
from sdpo.report.samples_png import draw_samples
from sdpo.report.templating import is_page
from sdpo.run.ownership import is_of_a_run
from sdpo.system.durable import write_whole
from sdpo.system.replaceable import check_replaceable

__all__ = ["write_report"]


def write_report(run_dir: Path) -> Path:
    """Write `report.html`, `curves.png` and `samples.png` into a run's directory.

    Args:
        run_dir: a directory that `sdpo train` wrote; the run may be unfinished.

    Returns:
        The path of `report.html`, which needs no other file.

    Raises:
        UserError: if `run_dir` is not a run's directory, or holds a page or pictures of these names that no report is.
    """
    run = read_run(Path(run_dir))
    if not is_of_a_run(run.directory) and not is_page(run.directory.report):
        for path in (run.directory.report, run.directory.curves, run.directory.samples):
            check_replaceable(path, "the report", lambda _: False)
    draw_curves(run, run.directory.curves)
    draw_samples(run, run.directory.samples)
    write_whole(run.directory.report, render_page(run))
    return run.directory.report
