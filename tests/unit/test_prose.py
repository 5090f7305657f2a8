"""Prose rules that a program can check: short lines and paragraphs, paths that exist, no retired phrases."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.paths import REPOSITORY

LINE, PARAGRAPH = 110, 5
PAGES = sorted([*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").glob("*.md"), REPOSITORY / "docs/results/README.md"])
SOURCES = sorted(path for path in (REPOSITORY / "src/sdpo").rglob("*") if path.suffix in (".py", ".yaml", ".html"))
PHRASES = ("see there", "can be gone on with", "mend it", "what the machine takes")
FRAGMENT = re.compile(r'"""(?:Of|What|Those|As)\b')


def name_of(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


def paragraphs(text: str) -> Iterator[list[str]]:
    """Paragraphs and list items as lists of lines; without fenced code, headings, images and table rows."""
    fenced, found = False, list[str]()
    for line in [*text.splitlines(), ""]:
        fence = line.lstrip().startswith("```")
        ends = fenced or fence or not line.strip() or line.startswith(("|", "#", "!["))
        if found and (ends or re.match(r"\s*(?:[-*]|\d+\.) ", line)):
            yield found
            found = []
        if not ends:
            found.append(line)
        fenced ^= fence


def phrases(text: str) -> list[str]:
    words = " ".join(text.lower().split())
    return [phrase for phrase in PHRASES if phrase in words]


def named_paths(page: Path) -> Iterator[Path]:
    """The files and folders that a page links to, or names in inline code; T stands for the folder of tests."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
    for target in re.findall(r"\]\((?!https?:)([^)#\s]+)", text):
        yield page.parent / target
    for code in re.findall(r"`([^`]+)`", text):
        for path in re.findall(r"(?<![\w./])(?:T|src|tests|docs|tools|examples)/[\w./-]*", code):
            if "NAME" not in path:
                yield REPOSITORY / re.sub("^T/", "tests/", path)


# -- README.md and docs ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_lines_and_paragraphs_of_pages_are_short(page: Path) -> None:
    found = list(paragraphs(page.read_text(encoding="utf-8")))
    assert [line for lines in found for line in lines if len(line) > LINE] == []
    assert [lines[0] for lines in found if len(lines) > PARAGRAPH] == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_pages_use_no_retired_phrase(page: Path) -> None:
    assert phrases(page.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_paths_that_pages_name_exist(page: Path) -> None:
    assert [str(path) for path in named_paths(page) if not path.exists()] == []


# -- src/sdpo ----------------------------------------------------------------------------------------------------------


def test_docstrings_begin_with_a_phrase_that_stands_alone() -> None:
    lines = ((path, line) for path in SOURCES for line in path.read_text(encoding="utf-8").splitlines())
    assert [f"{name_of(path)}: {line.strip()}" for path, line in lines if FRAGMENT.search(line)] == []


def test_sources_use_no_retired_phrase() -> None:
    found = {name_of(path): phrases(path.read_text(encoding="utf-8")) for path in SOURCES}
    assert {name: used for name, used in found.items() if used} == {}


# -- the checks themselves ---------------------------------------------------------------------------------------------


def test_the_checks_find_what_they_are_for() -> None:
    text = f"# {'x' * 200}\n| {'x' * 200} |\n```\n{'x' * 200}\n```\none\ntwo\n- three\n  four\n\n{'x' * 200}\n"
    assert list(paragraphs(text)) == [["one", "two"], ["- three", "  four"], ["x" * 200]]
    assert phrases("Fix the cause and\n  Mend it; see there.") == ["see there", "mend it"]
    assert FRAGMENT.search('"""Of a run."""') and not FRAGMENT.search('"""Assembles a run."""')
