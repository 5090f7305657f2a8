"""How a configuration names an algorithm, and what it refuses."""

from __future__ import annotations

import dataclasses

import pytest

from sdpo import Config
from sdpo.errors import UserError
from sdpo.estimate.cost import describe_cost, epoch_cost
from sdpo.method.advantages import GroupNormalizer, PromptNormalizer
from sdpo.method.algorithms import ALGORITHMS
from sdpo.method.reward_plans import Anchors, FinalStep


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_name_alone_is_the_algorithm_as_published(name: str) -> None:
    config = Config.load("emoji", [f"algorithm={name}"])
    published = ALGORITHMS[name]()
    assert config.build_algorithm() == published
    plain = {f.name: getattr(published, f.name) for f in dataclasses.fields(published)}
    plan = {Anchors(): "anchors", FinalStep(): "final"}[published.reward_plan]
    assert config.algorithm == {"name": name, **plain, "reward_plan": plan, "credit": "step"}
    assert Config.parse(config.model_dump(mode="json")) == config
    assert published.takes_trajectories == (name in ("rebel", "prdp"))
    assert "network evaluations" in describe_cost(config)


def test_another_algorithm_drops_the_settings_of_the_preset_s_own() -> None:
    config = Config.load("emoji", ["algorithm.clip_range=0.01", "algorithm.name=ddpo"])
    assert config.algorithm["clip_range"] == 0.01 and config.algorithm["credit"] == "step"
    assert Config.load("emoji", ["algorithm.clip_range=0.01", "algorithm=ddpo"]).algorithm == config.algorithm
    assert Config.load("emoji", algorithm={"name": "ddpo"}).algorithm["credit"] == "step"
    assert Config.load("emoji", ["algorithm.name=sdpo"]).algorithm["credit"] == "future", "that is the preset's own"
    with pytest.raises(UserError, match=r"unknown key 'credits' of algorithm ddpo \(did you mean 'credit'\?\)"):
        Config.load("emoji", ["algorithm={name: ddpo, credits: step}"])
    with pytest.raises(UserError, match=r"no algorithm 'ddop' \(did you mean 'ddpo'\?\)"):
        Config.load("emoji", ["algorithm=ddop"])


def test_grpo_brings_its_normaliser() -> None:
    config = Config.load("emoji", ["algorithm=grpo"])
    assert config.advantage.normalizer == "group" and isinstance(config.build_normalizer(), GroupNormalizer)
    pooled = Config.load("emoji", ["advantage.normalizer=prompt", "advantage.buffer_size=20"]).build_normalizer()
    assert pooled == PromptNormalizer(buffer_size=20)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["algorithm={name: ddpo, branches: 1}"], "compares branches, but algorithm.branches is 1"),
        (["algorithm=rebel", "train.timestep_fraction=0.5"], "needs all steps of a trajectory"),
        (["sample.shared_noise=false", "sample.share_first_step=true"], "begin at different latents"),
        (["algorithm={name: d3po, beta: 0}"], "algorithm.beta must be positive"),
    ],
)
def test_combinations_that_mean_nothing_are_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Config.load("emoji", overrides)


def test_whole_trajectories_make_one_optimizer_step_a_batch() -> None:
    stepwise, whole = (Config.load("emoji", [f"algorithm={name}", "sample.num_steps=4"]) for name in ("ddpo", "rebel"))
    assert epoch_cost(stepwise).optimizer_steps == 12
    assert epoch_cost(whole).optimizer_steps == 3
    # Sampling, all steps once without gradient, and once with.
    assert "at most 180 reward queries, 1440 network evaluations without and 720 with gradient" in describe_cost(whole)
