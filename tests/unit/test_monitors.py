"""Monitors against cases by hand, and stopping rules against rows of metrics."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.plane_model import Plane

from sdpo import Config
from sdpo.errors import UserError
from sdpo.evaluation.monitors import Drift, Monitors, diversity, edge_density, histogram_entropy, thumbnails
from sdpo.evaluation.stopping import Guard, check_rules, metric_names
from sdpo.loop.policy import Policy, PromptEmbeddings
from sdpo.loop.rollout import final_images
from sdpo.method.denoisers import DDIM
from sdpo.method.gaussian import kl_divergence


def shades(*values: float) -> torch.Tensor:
    """Images of one grey each, [N, 3, 8, 8]."""
    return torch.tensor(values).reshape(-1, 1, 1, 1).expand(-1, 3, 8, 8)


def test_diversity_by_hand() -> None:
    # Image i is of prompt i modulo 2: prompt 0 has 0.0 and 0.4, prompt 1 has 0.5 and 0.7.
    reduced = thumbnails(shades(0.0, 0.5, 0.4, 0.7))
    assert diversity(reduced, prompts=2) == pytest.approx((0.4 + 0.2) / 2)
    assert diversity(reduced, prompts=4) == pytest.approx((0.5 + 0.4 + 0.7 + 0.1 + 0.2 + 0.3) / 6)
    assert diversity(thumbnails(shades(0.3, 0.3)), prompts=1) == 0
    assert diversity(thumbnails(shades(0.3)), prompts=1) is None


def test_thumbnails_average_areas() -> None:
    images = torch.rand(2, 3, 64, 64)
    assert thumbnails(images).shape == (2, 3 * 32 * 32)
    torch.testing.assert_close(thumbnails(images)[0, 0], images[0, 0, :2, :2].mean())


def test_edges_and_entropy_by_hand() -> None:
    halves = torch.zeros(1, 3, 9, 9)
    halves[..., 5:] = 1  # one of eight columns of neighbours is an edge
    assert edge_density(halves).tolist() == pytest.approx([1 / 8])
    assert edge_density(shades(0.2, 0.9)).tolist() == [0, 0]
    board = (torch.arange(64) % 4 / 3).reshape(1, 1, 8, 8).expand(-1, 3, -1, -1)  # four shades, 16 pixels each
    assert histogram_entropy(torch.cat([board, shades(0.5)])).tolist() == pytest.approx([2, 0])


def test_the_drift_is_the_kl_of_the_trajectories_that_were_drawn() -> None:
    policy = Policy(Plane())
    embeddings, denoiser = PromptEmbeddings(policy.backbone), policy.backbone.denoiser(3, 1.0)
    assert isinstance(denoiser, DDIM)

    def drift(shift: float, micro_batch: int) -> torch.Tensor:
        policy.backbone.network_module.shift.data.fill_(shift)
        watch = Drift(policy, denoiser, 3)
        list(final_images(policy, denoiser, embeddings, ["a"] * 5, range(5), micro_batch, watch=watch))
        return watch.values

    assert drift(0.0, 2).tolist() == [0, 0, 0]
    found = drift(0.5, 2)
    # The shift moves μ by the same amount wherever the latent is: the KL of each step by hand.
    latents, steps, expected = torch.zeros(1, 2, 1, 1), torch.arange(3), 0.0
    for step in steps:
        moved, base = (denoiser.transition(latents, torch.full((1, 2, 1, 1), s), step[None]) for s in (0.5, 0.0))
        alpha = policy.backbone.denoiser(3, 1.0)._coefficients[step, 0] ** 2  # the network gives (1 − ᾱ) of the shift
        expected += kl_divergence(base.mean + (1 - alpha) * (moved.mean - base.mean), base.mean, base.std).item() / 3
    assert found.tolist() == pytest.approx([expected] * 3, rel=1e-4)
    torch.testing.assert_close(drift(0.5, 5), found)


class One:
    """One process."""

    def gather(self, items: list[Any]) -> list[Any]:
        return items


def test_only_the_images_that_every_evaluation_has_are_looked_at() -> None:
    policy = Policy(Plane())
    process: Any = One()

    def measured(images: torch.Tensor) -> dict[str, float]:
        monitors = Monitors(policy, policy.backbone.denoiser(1, 1.0), range(len(images)), prompts=2, per_prompt=1)
        for chunk in images.split(3):
            monitors.look(chunk)
        return monitors.finish(process)

    few, many = measured(shades(0.1, 0.4)), measured(shades(0.1, 0.4, 0.9, 0.9, 0.9, 0.9))
    assert few == many and few["diversity"] == pytest.approx(0.3) and few["kl_to_base"] == 0


def test_without_random_steps_there_is_no_drift() -> None:
    policy = Policy(Plane())
    process: Any = One()
    monitors = Monitors(policy, policy.backbone.denoiser(1, 0.0), [0], prompts=1, per_prompt=1)
    monitors.look(shades(0.5))
    assert set(monitors.finish(process)) == {"edge_density", "entropy"}  # nor a pair


def guarded(*rules: dict[str, Any], base: dict[str, float] | None = None) -> Guard:
    guard = Guard(Config.load("emoji", stop_when=list(rules)).stop_when)
    guard.start({"eval/x/1": 1.0, "monitor/diversity/4": 0.4} if base is None else base, [])
    return guard


def row(epoch: int, diversity: float, gain: float = 0.0) -> dict[str, Any]:
    return {"epoch": epoch, "eval/x/1": 1.0, "monitor/diversity/4": diversity, "eval_gain": gain}


HALVED = {"metric": "monitor/diversity/4", "below": 0.5, "relative_to": "base", "patience": 2}


def test_a_rule_must_hold_several_evaluations_in_a_row() -> None:
    guard = guarded(HALVED)
    values = [0.3, 0.19, 0.21, 0.1, None, 0.15]  # None: an epoch without an evaluation changes nothing
    for epoch, value in enumerate(values, start=1):
        assert guard.stop is None
        guard.observe({"epoch": epoch} if value is None else row(epoch, value, gain=epoch))
    assert guard.stop is not None and guard.stop.epoch == 6
    assert guard.stop.reason == (
        "monitor/diversity/4 is 0.15, below 0.2 (0.5 × the base model's 0.4), at 2 evaluations in a row"
    )
    # The best is the one with the largest gain among those at which the rule did not hold.
    assert guard.best(range(7)) == 3 and guard.best([1, 2, 4, 6]) == 1 and guard.best([2, 4]) is None
    assert [guard.score(row(epoch, 0)) for epoch in (1, 2, 3)] == [1, None, 3]


def test_a_resumed_run_decides_as_the_undisturbed_one() -> None:
    rows = [row(1, 0.19), row(2, 0.3), row(3, 0.19), row(4, 0.19)]
    whole = guarded(HALVED)
    for each in rows:
        whole.observe(each)
    for cut in range(1, 4):
        resumed = Guard(whole._rules)
        resumed.start({"monitor/diversity/4": 0.4}, rows[:cut])
        for each in rows[cut:]:
            assert resumed.stop is None
            resumed.observe(each)
        assert resumed.stop == whole.stop and resumed.best(range(9)) == whole.best(range(9))


def test_absolute_bounds_and_several_rules() -> None:
    guard = guarded({"metric": "monitor/diversity/4", "above": 0.5}, {"metric": "eval_gain", "below": -1})
    guard.observe(row(1, 0.5, gain=-1))
    assert guard.stop is None
    guard.observe(row(2, 0.6, gain=-2))
    assert guard.stop is not None and guard.stop.reason.count("; ") == 1


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ({"metric": "monitor/diversity/3", "below": 1}, "monitor/diversity/3.*monitor/diversity/4"),
        ({"metric": "eval/emoji_scor/1", "below": 1}, "eval/emoji_score/1"),
        ({"metric": "eval_gain", "below": 1, "relative_to": "base"}, "leave out relative_to"),
    ],
)
def test_rules_that_could_never_act_are_refused(rule: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        check_rules(Config.load("emoji", stop_when=[rule]))


@pytest.mark.parametrize(
    ("bounds", "words"),
    [
        ({}, "one bound, below or above"),
        ({"below": 1, "above": 2}, "one bound, below or above"),
        ({"belo": 1}, "unknown key 'stop_when.0.belo' .did you mean 'below'"),
        ({"below": 1, "patience": 0}, "stop_when.0.patience"),
    ],
)
def test_a_rule_has_one_bound(bounds: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        Config.load("emoji", stop_when=[{"metric": "eval_gain", **bounds}])


def test_what_was_not_measured_is_named() -> None:
    with pytest.raises(UserError, match="no monitor/kl_to_base/1.*There are: eval/x/1"):
        guarded({"metric": "monitor/kl_to_base/1", "above": 1})
    with pytest.raises(UserError, match="is 0 for the base model: leave out relative_to"):
        guarded(HALVED, base={"monitor/diversity/4": 0.0})
    with pytest.raises(UserError, match="was not measured as it is now"):
        guarded(HALVED, base={"eval/x/1": 1.0})
    guard = guarded(HALVED)
    guard.check({"epoch": 1})
    with pytest.raises(UserError, match="no monitor/diversity/4"):
        guard.check({"epoch": 1, "eval/x/1": 0.0})


def test_rules_need_evaluations_in_between_and_a_checkpoint_to_go_back_to() -> None:
    rule = {"metric": "eval_gain", "below": 0}
    with pytest.raises(UserError, match="checkpoint.keep_best is 0"):
        check_rules(Config.load("emoji", checkpoint={"keep_best": 0}, stop_when=[rule]))
    with pytest.raises(UserError, match="evaluate.every is 0"):
        check_rules(Config.load("emoji", evaluate={"every": 0}, stop_when=[rule]))
    assert "eval/emoji_judge/8" in metric_names(Config.load("emoji"))


def test_held_out_rewards_are_not_trained_on() -> None:
    with pytest.raises(UserError, match="held_out names emoji_score"):
        Config.load("emoji", evaluate={"held_out": ["emoji_score"]})
    config = Config.load("emoji", evaluate={"held_out": ["colorfulness", "emoji_judge"]})
    assert config.evaluate.observers == ["colorfulness", "emoji_judge"]
