"""Configurations: what is written reads back as the same, and combinations without meaning are rejected."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from sdpo import Config
from sdpo.config.load import preset_names
from sdpo.errors import UserError
from sdpo.method.algorithms import ALGORITHMS

TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=40)
BATCH = st.sampled_from([1, 2, 3, 5, 6, 10, 30, 90])
PROMPT_LISTS = st.lists(TEXT, min_size=1, max_size=4)
RULES = st.fixed_dictionaries({"metric": TEXT, "above": st.floats(-1e9, 1e9), "patience": st.integers(1, 9)})
NAMES = st.sampled_from(["colorfulness", "emoji_score", "mine:f"])
SETTINGS = st.fixed_dictionaries(
    {},
    optional={
        "seed": st.integers(0, 2**63 - 1),
        "epochs": st.integers(1, 2**31 - 1),
        "output_dir": TEXT,
        "prompts": st.fixed_dictionaries({"train": PROMPT_LISTS, "unseen": st.none() | TEXT}),
        "rewards": st.dictionaries(NAMES, st.floats(-9, 9), min_size=1),
        "lora": st.none() | st.fixed_dictionaries({"rank": st.integers(1, 64), "alpha": st.floats(0.1, 64)}),
        "sample": st.fixed_dictionaries({"num_steps": st.integers(2, 60), "eta": st.floats(0.01, 1)}),
        "train": st.fixed_dictionaries(
            {"batch_size": BATCH, "learning_rate": st.floats(1e-8, 1), "betas": st.just([0.5, 0.25])},
            optional={
                "ema_decay": st.none() | st.floats(0.1, 0.9),
                "lr_schedule": st.sampled_from(["linear", "cosine"]),
            },
        ),
        "evaluate": st.fixed_dictionaries({"steps": st.lists(st.integers(1, 50), min_size=1, max_size=4)}),
        "stop_when": st.lists(RULES, max_size=2),
    },
)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(SETTINGS, st.sampled_from([*ALGORITHMS, None]))
def test_a_written_configuration_reads_as_the_same(values: dict[str, Any], algorithm: str | None) -> None:
    config = Config.load("emoji", **values, **({"algorithm": algorithm} if algorithm else {}))
    text = config.to_yaml()
    again = Config.parse(yaml.safe_load(text))
    assert again == config and again.to_yaml() == text
    assert again.build_algorithm() == config.build_algorithm()


@pytest.mark.parametrize("name", preset_names())
def test_presets_too(name: str) -> None:
    config = Config.load(name)
    assert Config.parse(yaml.safe_load(config.to_yaml())) == config


def test_held_out_rewards_are_not_trained_on() -> None:
    with pytest.raises(UserError, match="held_out names emoji_score"):
        Config.load("emoji", evaluate={"held_out": ["emoji_score"]})
    config = Config.load("emoji", evaluate={"held_out": ["colorfulness", "emoji_judge"]})
    assert config.evaluate.observers == ["colorfulness", "emoji_judge"]


def test_a_warm_up_needs_an_average() -> None:
    with pytest.raises(UserError, match="ema_warmup is false, but no average is kept"):
        Config.load("emoji", train={"ema_warmup": False})
    assert not Config.load("emoji", train={"ema_warmup": False, "ema_decay": 0.95}).train.ema_warmup
