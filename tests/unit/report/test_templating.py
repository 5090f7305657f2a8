"""Templates: what is printed is escaped, and what is not there is an error."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

import pytest
from helpers.written_runs import use_prompt_everywhere, write_run
from jinja2 import UndefinedError
from markupsafe import Markup

from sdpo.commands.compare import compare_directories
from sdpo.report import write_report
from sdpo.report.svg import Series, legend, line_chart
from sdpo.report.templating import render_html

EVIL = "\"'><img src=x onerror=alert(1)>&amp;{{ 1 }}"


class _Attributes(HTMLParser):
    """Collects the alternative texts of images and the names of all attributes."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.alternatives: list[str] = []
        self.names: set[str] = set()
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names |= {name for name, _ in attrs}
        self.alternatives += [value or "" for name, value in attrs if name == "alt"]


def test_values_are_escaped_and_markup_is_not(tmp_path: Path) -> None:
    (tmp_path / "page.html.j2").write_text('<i title="{{ text }}">{{ text }}</i>{{ markup }}')
    page = render_html("page.html.j2", tmp_path, text='<b>"', markup=Markup("<hr>"))
    assert page == '<i title="&lt;b&gt;&#34;">&lt;b&gt;&#34;</i><hr>'


def test_a_missing_value_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "page.html.j2").write_text("{{ nothing }}")
    with pytest.raises(UndefinedError, match="nothing"):
        render_html("page.html.j2", tmp_path)


def test_prompts_stay_within_their_attributes(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", {1: [0.2, 0.4]}, tiles=True, reward=EVIL)
    use_prompt_everywhere(run, EVIL)
    result = compare_directories([run], tmp_path / "out")
    for page in (write_report(run), result.page):
        found = _Attributes(page.read_text(encoding="utf-8"))
        assert len(found.alternatives) >= 8 and all(alt.endswith(f": {EVIL}") for alt in found.alternatives)
        assert not [name for name in found.names if name.startswith("on")]


def test_charts_escape_their_texts() -> None:
    series = [Series("<b>line", [0, 1], [1, 2], 0)]
    chart = line_chart("<b>title", series, "<b>x", "<b>y", keys=legend([("<b>key", 0)]))
    assert "<b>" not in str(chart)
    assert str(chart).count("&lt;b&gt;") == 2 * 3 + 2 + 1  # title and axes also in the aria-label; two points; one key
