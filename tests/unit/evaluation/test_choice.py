"""The fixed choice of prompts that a bounded evaluation draws."""

from __future__ import annotations

import pytest

from sdpo import Config
from sdpo.errors import UserError
from sdpo.evaluation.choice import choose
from sdpo.evaluation.prompt_lists import prompt_lists
from sdpo.prompts import Prompt, load_prompts, named_sets

PROMPTS = [Prompt(f"prompt {i}") for i in range(50)]


def texts(prompts: list[Prompt]) -> list[str]:
    return [p.text for p in prompts]


def test_the_choice_depends_on_the_texts_alone() -> None:
    chosen = choose(PROMPTS, 10)
    assert len(chosen) == 10 and texts(chosen) == [t for t in texts(PROMPTS) if t in set(texts(chosen))]
    assert set(texts(choose(PROMPTS[::-1], 10))) == set(texts(chosen))
    assert set(texts(choose(PROMPTS, 5))) < set(texts(chosen)) != set(texts(PROMPTS[:10]))
    more = choose([*PROMPTS, Prompt("another")], 10)
    assert len(set(texts(more)) & set(texts(chosen))) >= 9


def test_short_lists_and_no_limit_stay_whole() -> None:
    assert choose(PROMPTS, None) == choose(PROMPTS, 50) == choose(PROMPTS, 99) == PROMPTS
    twice = [Prompt("a"), Prompt("a"), Prompt("b")]
    assert len(choose(twice, 2)) == 2


def test_the_lists_of_a_run() -> None:
    config = Config.load("emoji", evaluate={"prompts": ["one", "two", "three"], "max_prompts": 2})
    lists = prompt_lists(config)
    assert len(lists.train) == 45 and len(lists.evaluated) == len(lists.unseen) == 2
    assert lists.evaluated == choose([Prompt("one"), Prompt("two"), Prompt("three")], 2)
    whole = prompt_lists(Config.load("emoji"))
    assert whole.evaluated == whole.train and whole.left_out == 0
    assert prompt_lists(config, PROMPTS).evaluated == PROMPTS
    with pytest.raises(UserError, match="nowhere"):
        prompt_lists(Config.load("emoji", evaluate={"prompts": "nowhere"}))


def test_a_general_set_of_unseen_prompts_ships() -> None:
    assert "general" in named_sets()
    general, animals = load_prompts("general"), set(texts(load_prompts("simple_animals")))
    assert len(general) >= 100 and len(set(texts(general))) == len(general)
    assert not animals & set(texts(general))
    assert all(p.text.isascii() and 3 <= len(p.text.split()) <= 20 for p in general)
    assert len(choose(general, Config().evaluate.max_prompts)) == len(general), "no default cuts the set"
