"""How a configuration names an algorithm, and what it refuses."""

from __future__ import annotations

import dataclasses

import pytest

from sdpo import Config
from sdpo.errors import UserError
from sdpo.estimate.cost import describe_cost, epoch_cost
from sdpo.method.advantages import GroupNormalizer, PromptNormalizer
from sdpo.method.algorithms import POLICY_ALGORITHMS
from sdpo.method.reward_plans import Anchors, FinalStep


@pytest.mark.parametrize("name", POLICY_ALGORITHMS)
def test_a_name_alone_is_the_algorithm_as_published(name: str) -> None:
    config = Config.load("emoji", [f"algorithm={name}"])
    published = POLICY_ALGORITHMS[name]()
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
    assert config.advantage.normalizer == "group"
    assert config.build_normalizer() == GroupNormalizer(unbiased=True, epsilon=1e-8)
    flow = Config.load("emoji", ["algorithm={name: grpo, global_std: true, branches: 24}"])
    assert flow.build_normalizer() == GroupNormalizer(global_std=True, epsilon=1e-4)
    population = Config.load("emoji", ["algorithm={name: grpo, unbiased_std: false}"]).build_normalizer()
    assert population == Config.load("emoji", ["advantage.normalizer=group"]).build_normalizer() == GroupNormalizer()
    pooled = Config.load("emoji", ["advantage.normalizer=prompt", "advantage.buffer_size=20"]).build_normalizer()
    assert pooled == PromptNormalizer(buffer_size=20)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["algorithm=rebel", "train.accumulate_steps=2"], "joins all steps of a trajectory: leave it at null"),
        (["algorithm=rebel", "train.timestep_fraction=0.5"], "needs all steps of a trajectory"),
        (["sample.shared_noise=false", "sample.share_first_step=true"], "begin at different latents"),
        (["algorithm={name: d3po, beta: 0}"], "algorithm.beta must be positive"),
        (["algorithm={name: srg, num_steps: [2, 4, 4]}", "sample.num_steps=4"], "names a number twice"),
        (["algorithm={name: srg, reward_augment: {copys: 2}}"], "copys"),
    ],
)
def test_combinations_that_mean_nothing_are_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Config.load("emoji", overrides)


def test_whole_trajectories_make_one_optimizer_step_a_batch() -> None:
    few = ["sample.num_steps=4", "train.kl_weight=0"]
    stepwise, whole = (Config.load("emoji", [f"algorithm={name}", *few]) for name in ("ddpo", "rebel"))
    assert epoch_cost(stepwise).optimizer_steps == 3
    assert epoch_cost(Config.load("emoji", ["sample.num_steps=4", "algorithm.credit=step"])).optimizer_steps == 12
    assert epoch_cost(whole).optimizer_steps == 3
    # Sampling, all steps once without gradient, and once with.
    assert "at most 180 reward queries, 1440 network evaluations without and 720 with gradient" in describe_cost(whole)


def test_a_normaliser_that_is_replaced_is_named(caplog: pytest.LogCaptureFixture) -> None:
    """The preset's `pair` compares branches: grpo has its own, and ddpo's single trajectories have none."""
    config = Config.load("emoji", ["algorithm=ddpo"])
    assert config.algorithm["branches"] == 1 and config.advantage.normalizer == "stepwise"
    assert "advantage.normalizer: ddpo takes stepwise in place of pair, which compares branches" in caplog.text
    caplog.clear()
    assert Config.load("emoji", ["algorithm={name: ddpo, branches: 2}"]).advantage.normalizer == "pair"
    assert Config.parse(config.model_dump(mode="json")) == config
    assert not caplog.text
    Config.load("emoji", ["algorithm=grpo"])
    assert "grpo takes group in place of pair" in caplog.text


@pytest.mark.parametrize(
    ("name", "steps", "unit"), [("ddpo", 2, 50), ("d3po", 2, 50), ("grpo", 2, 50), ("sdpo", 100, 1)]
)
def test_the_optimizer_steps_of_an_epoch_are_those_of_the_authors(name: str, steps: int, unit: int) -> None:
    """ddpo-pytorch, d3po, Flow-GRPO and DanceGRPO step once a batch, after all steps of its samples; SDPO at each."""
    config = Config.load("aesthetic", [f"algorithm={name}"])
    assert config.train.accumulate_steps is None
    assert epoch_cost(config).optimizer_steps == steps
    same = Config.load("aesthetic", [f"algorithm={name}", f"train.accumulate_steps={unit}"])
    assert epoch_cost(same).optimizer_steps == steps
    uneven = Config.load("aesthetic", [f"algorithm={name}", "train.accumulate_steps=20"])
    assert epoch_cost(uneven).optimizer_steps == 2 * 3, "of 50 steps the last optimizer step accumulates ten"
