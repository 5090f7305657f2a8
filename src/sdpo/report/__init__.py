"""Turns a run's directory into a report: `report.html`, `curves.png` and `samples.png`."""

from __future__ import annotations

from pathlib import Path

from sdpo.report.figures import draw_curves
from sdpo.report.gallery import draw_samples
from sdpo.report.page import render_page
from sdpo.report.reader import read_run
from sdpo.system.durable import write_whole

__all__ = ["write_report"]


def write_report(run_dir: Path) -> Path:
    """Write `report.html`, `curves.png` and `samples.png` into a run's directory, from what is in it so far.

    Args:
        run_dir: a directory that `sdpo train` wrote; the run may still be going on.

    Returns:
        The path of `report.html`, one file that needs no other.

    Raises:
        UserError: if `run_dir` is not a run's directory.
    """
    run = read_run(Path(run_dir))
    draw_curves(run, run.path / "curves.png")
    draw_samples(run, run.path / "samples.png")
    page = run.path / "report.html"
    write_whole(page, render_page(run))
    return page
