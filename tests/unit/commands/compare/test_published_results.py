"""The tables of docs/results follow from the runs that are kept there, and its commands describe those runs."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from helpers.paths import REPOSITORY

from sdpo.commands.compare import compare_directories
from sdpo.commands.compare.plan import plan_runs

RESULTS = REPOSITORY / "docs" / "results"
SCRIPT = (RESULTS / "reproduce.sh").read_text().replace("\\\n", " ")
COMPARED = {line.split()[1]: line.split()[2:] for line in SCRIPT.splitlines() if re.match(r"compare [\w-]+ ", line)}
NAMES = list(dict.fromkeys(name for names, *_ in COMPARED.values() for name in names.split(",")))
SEEDS = (42, 43, 44)


def names_with_rates() -> list[str]:
    """Return the names with learning rates that the script's loops make."""
    names, rates = re.findall(r"for (?:name|rate) in ([^;]*); do", SCRIPT)
    return [f"{name}-{rate}" for name in names.split() for rate in rates.split()]


def test_the_script_makes_what_is_kept() -> None:
    folders = {path.parent.name for path in RESULTS.glob("*/comparison.md")}
    assert folders == {*COMPARED, "learning-rates"}
    assert {path.name for path in (RESULTS / "runs").iterdir()} == {f"{n}-seed{s}" for n in NAMES for s in SEEDS}
    assert {path.name for path in (RESULTS / "learning-rates" / "runs").iterdir()} == {
        f"{n}-seed41" for n in names_with_rates()
    }


@pytest.mark.parametrize("folder", [*COMPARED, "learning-rates"])
def test_the_tables_follow_from_the_runs(tmp_path: Path, folder: str) -> None:
    names, *option = COMPARED.get(folder, [",".join(names_with_rates())])
    runs, seeds = (RESULTS / "runs", SEEDS) if folder in COMPARED else (RESULTS / folder / "runs", (41,))
    words = [f"{name}={runs / f'{name}-seed{seed}'}" for seed in seeds for name in names.split(",")]
    compare_directories(words, tmp_path, reach=option[1] if option else None)
    for file in ("comparison.md", "comparison.csv"):
        assert (tmp_path / file).read_text() == (RESULTS / folder / file).read_text(), file


def test_the_readme_quotes_the_tables() -> None:
    """The rows of each table hold the final rewards of the table that its header links, in order."""
    text, checked = (RESULTS / "README.md").read_text(), 0
    for folder, body in re.findall(r"^\| \[([\w-]+)\]\([^\n]*\n\|[-|]+\|\n((?:\|.*\n)+)", text, re.M):
        table = (RESULTS / folder / "comparison.md").read_text().split("\n## ")[1]
        final = {row.split("|")[1].strip(): numbers(row) for row in table.splitlines() if row.startswith("| ")}
        for row in body.splitlines():
            name = re.split(r" \(|,", row.split("|")[1].strip())[0]
            assert final[name] and numbers(row) == final[name], row
            checked += 1
    assert checked > 15


def numbers(row: str) -> list[str]:
    """Return a row's rewards, which have one decimal; learning rates, samples and percentages have none."""
    return re.findall(r"\d+\.\d(?!\d|e)", row.split("|", 2)[2])


def test_the_commands_mean_these_runs(tmp_path: Path) -> None:
    """Every run that the script would train has the settings of the run that is kept, and counts as finished."""
    shutil.copytree(RESULTS / "runs", tmp_path / "runs")
    shutil.copytree(RESULTS / "learning-rates" / "runs", tmp_path / "learning-rates" / "runs")
    common = ["rewards={colorfulness: 1.0}", *re.search('common="(.*)"', SCRIPT)[1].split()]  # type: ignore[index]
    rates, compared = (re.findall(r"evaluate\.\w+=[\d.]+", part) for part in SCRIPT.split("# 2."))
    planned = plan_runs("emoji", [*common, *compared], NAMES, 3, 42, tmp_path, RESULTS / "settings.yaml")
    file = RESULTS / "learning-rates.yaml"
    planned += plan_runs("emoji", [*common, *rates], names_with_rates(), 1, 41, tmp_path / "learning-rates", file)
    assert len(planned) == 3 * len(NAMES) + len(names_with_rates())
    assert [run.name for run in planned if not run.finished()] == []
    quoted = (RESULTS / "README.md").read_text()
    assert all(setting in quoted for setting in [*common, *compared]), "README's own command"
