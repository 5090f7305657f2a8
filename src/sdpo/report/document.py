"""The frame of every page: one HTML document that loads nothing from elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from sdpo.report.looks import css_colours

_TEMPLATE = Path(__file__).with_name("template.html")


def render_document(title: str, header: str, sections: Iterable[tuple[str, str]]) -> str:
    """A whole page.

    Args:
        title: text of the browser's tab.
        header: HTML above the sections.
        sections: headings, and the HTML below each.
    """
    return Template(_TEMPLATE.read_text(encoding="utf-8")).substitute(
        title=escape(title),
        colours_light=css_colours("light"),
        colours_dark=css_colours("dark"),
        header=header,
        body="".join(f"<section><h2>{escape(heading)}</h2>{html}</section>" for heading, html in sections),
    )


def head(kicker: str, title: str, facts: Mapping[str, str], notes: Sequence[str]) -> str:
    """The HTML of a page's top, all of it from text: a line, the title, facts by name, and what to know about them."""
    listed = "".join(f"<div><dt>{escape(key)}</dt><dd>{escape(value)}</dd></div>" for key, value in facts.items())
    remarks = "".join(f"<li>{escape(note)}</li>" for note in notes)
    return f'<p class="kicker">{escape(kicker)}</p><h1>{escape(title)}</h1><dl class="facts">{listed}</dl>' + (
        f'<ul class="notes">{remarks}</ul>' if remarks else ""
    )


def missing(text: str) -> str:
    """A line in place of what is not there."""
    return f'<p class="missing">{escape(text)}</p>'


def wanted_rewards(config: Mapping[str, Any]) -> str:
    """The rewards of a run's configuration with their weights, in words."""
    rewards = config.get("rewards")
    if isinstance(rewards, Mapping):
        return ", ".join(str(n) if w == 1 else f"{n} × {w}" for n, w in rewards.items())
    return "unnamed" if rewards is None else str(rewards)


def trained_weights(config: Mapping[str, Any]) -> str:
    """What a run's configuration trains, in words."""
    lora = config.get("lora")
    return f"LoRA, rank {lora.get('rank', '?')}" if isinstance(lora, Mapping) else "all weights (full fine-tuning)"


def setting_name(setting: Any, key: str) -> str:
    """A setting's name, whether it is written as a word or as a mapping."""
    if isinstance(setting, Mapping):
        setting = setting.get(key)
    return "unnamed" if setting is None else str(setting)
