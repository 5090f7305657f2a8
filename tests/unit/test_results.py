"""What docs/results says follows from the numbers that lie there, and its commands mean those runs."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from sdpo.compare import compare_directories
from sdpo.compare.plan import plan_runs

RESULTS = Path(__file__).parents[2] / "docs" / "results"
SCRIPT = (RESULTS / "reproduce.sh").read_text().replace("\\\n", " ")
COMPARED = {line.split()[1]: line.split()[2:] for line in SCRIPT.splitlines() if re.match(r"compare [\w-]+ ", line)}
SEEDS = (42, 43, 44)


def test_the_script_makes_what_is_kept() -> None:
    folders = {path.parent.name for path in RESULTS.glob("*/comparison.md")}
    assert folders == {*COMPARED, "learning-rates"}
    names = {name for names, *_ in COMPARED.values() for name in names.split(",")}
    assert {path.name for path in (RESULTS / "runs").iterdir()} == {f"{n}-seed{s}" for n in names for s in SEEDS}


@pytest.mark.parametrize("folder", COMPARED)
def test_the_tables_follow_from_the_runs(tmp_path: Path, folder: str) -> None:
    names, *reach = COMPARED[folder]
    words = [f"{name}={RESULTS / 'runs' / f'{name}-seed{seed}'}" for seed in SEEDS for name in names.split(",")]
    compare_directories(words, tmp_path, reach=reach[1] if reach else None)
    for file in ("comparison.md", "comparison.csv"):
        assert (tmp_path / file).read_text() == (RESULTS / folder / file).read_text(), file


def test_the_commands_mean_these_runs(tmp_path: Path) -> None:
    """Every run that the script would train has the settings of the one that is kept, and counts as finished."""
    shutil.copytree(RESULTS / "runs", tmp_path / "runs")
    shutil.copytree(RESULTS / "learning-rates" / "runs", tmp_path / "learning-rates" / "runs")
    common = re.search('common="(.*)"', SCRIPT)[1].split()  # type: ignore[index]
    reward = "rewards={colorfulness: 1.0}"
    names = list(dict.fromkeys(name for names, *_ in COMPARED.values() for name in names.split(",")))
    compared = re.findall(r"evaluate\.[\w.]+=\d+", SCRIPT.split("# 2.")[1])
    planned = plan_runs("emoji", [reward, *common, *compared], names, 3, 42, tmp_path, RESULTS / "settings.yaml")
    rates = re.findall(r"for (?:name|rate) in ([^;]*); do", SCRIPT)
    grid = [f"{name}-{rate}" for name in rates[0].split() for rate in rates[1].split()]
    compared = re.findall(r"evaluate\.[\w.]+=\d+", SCRIPT.split("# 2.")[0])
    file = RESULTS / "learning-rates.yaml"
    planned += plan_runs("emoji", [reward, *common, *compared], grid, 1, 41, tmp_path / "learning-rates", file)
    assert len(planned) == 3 * len(names) + len(grid)
    assert [run.name for run in planned if not run.finished()] == []
