"""The results' plan can be run as it stands, its rules hold, and its tables follow from the runs that are kept."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from helpers.paths import REPOSITORY


def load_tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("evidence", REPOSITORY / "tools" / "evidence.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["evidence"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


evidence = load_tool()
PLAN = evidence.load_plan()
KEPT = sorted(path for path in (evidence.RESULTS / "evidence").glob("*/*") if path.is_dir())


@pytest.mark.parametrize("name", PLAN)
def test_every_setting_is_valid_and_draws_as_many_samples_as_the_others(name: str, tmp_path: Path) -> None:
    regime, samples = PLAN[name], set()
    for setting in regime.settings:
        config = regime.planned(setting, regime.grid(setting)[0], regime.seeds[0], tmp_path).config
        samples.add(config.epochs * config.sample.prompts_per_epoch * config.build_algorithm().branches)
    assert len(samples) == 1


@pytest.mark.parametrize("name", PLAN)
def test_the_kept_runs_are_those_of_the_plan(name: str, tmp_path: Path) -> None:
    regime = PLAN[name]
    planned = {}
    for setting in regime.settings:
        for rate in regime.grid(setting):
            for seed in [*regime.grid_seeds, *regime.seeds]:
                planned[evidence.run_name(setting, rate, seed)] = (setting, rate, seed)
    for path in KEPT:
        if path.parent.name == name:
            assert regime.planned(*planned[path.name], tmp_path).finished(), path.name


@pytest.mark.parametrize("name", PLAN)
def test_the_tables_follow_from_the_runs(name: str) -> None:
    kept = (evidence.RESULTS / "evidence" / f"{name}.md").read_text(encoding="utf-8")
    assert evidence.make_tables(PLAN[name]) == kept


def result(reward: float, judge: float = 0.99, palette: float = 1.0) -> object:
    one = np.ones(4)
    return evidence.Result([1, 2, 4, 8], reward * one, one, judge * one, 0.99 * one, 0.01 * one, palette * one, 1, 1, 1)


def test_a_rate_is_not_admitted_where_images_are_worse_or_alike() -> None:
    assert evidence.is_admitted([result(1.0)])
    assert evidence.is_admitted([result(1.0, judge=0.985)])
    assert not evidence.is_admitted([result(1.0, judge=0.97)])
    assert not evidence.is_admitted([result(1.0, palette=0.7)])
    worse_at_one_step_count = replace(result(1.0), judge=np.array([0.99, 0.99, 0.99, 0.9]))  # type: ignore[type-var]
    assert not evidence.is_admitted([worse_at_one_step_count])


@pytest.mark.parametrize(
    ("by_rate", "chosen"),
    [
        ({0.1: result(1.0), 0.2: result(2.0)}, 0.2),
        ({0.1: result(1.0), 0.2: result(2.0, palette=0.5)}, 0.1),
        ({0.1: result(1.0, judge=0.0), 0.2: result(2.0, judge=0.0)}, 0.1),
        ({0.1: result(1.0)}, None),
    ],
)
def test_the_choice_of_a_rate(
    monkeypatch: pytest.MonkeyPatch, by_rate: dict[float, object], chosen: float | None
) -> None:
    regime = replace(PLAN["four-steps"], rates=[0.1, 0.2], settings={"a": {}}, recommended="a")
    monkeypatch.setattr(evidence.Regime, "kept", lambda self, setting, rate, seed: by_rate.get(rate))
    monkeypatch.setattr(evidence, "result_of", lambda run: run)
    assert evidence.choose_rate(regime, "a") == chosen


def test_the_interval_of_paired_differences() -> None:
    assert evidence.bootstrap_interval([0.3, 0.3, 0.3]) == pytest.approx((0.3, 0.3))
    low, high = evidence.bootstrap_interval([-1.0, 0.0, 1.0, 2.0, 3.0])
    assert -1.0 < low < 1.0 < high < 3.0


def test_a_seed_that_chooses_a_rate_is_not_reported() -> None:
    with pytest.raises(ValueError, match=r"seeds \[42\]"):
        replace(PLAN["four-steps"], grid_seeds=[41, 42])
    with pytest.raises(ValueError, match="another size"):
        replace(PLAN["four-steps"], rates=[0.1])
