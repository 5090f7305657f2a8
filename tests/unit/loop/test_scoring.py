"""Scoring: which images are asked for, each of them once; where models lie; and what is not waited for."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from torch import Tensor

from sdpo.errors import RewardError, UserError
from sdpo.loop.reward_mix import RewardMix
from sdpo.loop.scoring import Scorer
from sdpo.method.dense_rewards import group_query_steps, interpolate, query_steps, similarities
from sdpo.method.reward_plans import REWARD_PLANS, AllSteps, FinalStep
from sdpo.method.types import Trajectories
from sdpo.rewards import PlacedReward


class Identity:
    """All that scoring needs of a backbone: decodes a latent to itself."""

    def decode(self, latents: Tensor) -> Tensor:
        return latents


class FirstPixel:
    """A reward that remembers what it was asked."""

    def __init__(self) -> None:
        self.seen: list[Tensor] = []
        self.calls: list[tuple[list[str], list[dict[str, Any]]]] = []

    def __call__(self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> Tensor:
        self.seen += list(images.clone())
        self.calls.append((prompts, metadata))
        return images[:, 0, 0, 0]


def part(groups: int, branches: int = 2, steps: int = 4, seed: int = 0, shared: bool = False) -> Trajectories:
    x0 = torch.randn(groups, branches, steps, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    if shared:
        x0[:, :, 0] = x0[:, :1, 0]
    return Trajectories(
        prompts=[f"prompt {seed}.{i}" for i in range(groups)],
        metadata=[{"group": (seed, i)} for i in range(groups)],
        sample_index=torch.arange(groups),
        states=torch.zeros(groups, branches, steps + 1, 3, 4, 4),
        x0=x0,
        log_prob=torch.zeros(groups, branches, steps),
        stochastic=torch.ones(steps, dtype=torch.bool),
        shared_first_step=shared,
    )


@pytest.mark.parametrize("plan", REWARD_PLANS)
@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("shared", [False, True])
def test_no_image_is_scored_twice_and_rewards_reach_their_steps(plan: str, steps: int, shared: bool) -> None:
    reward = FirstPixel()
    scorer = Scorer(Identity(), RewardMix({"r": reward}, {"r": 2.0}), REWARD_PLANS[plan](), decode_batch=3)
    parts = [part(3, steps=steps, seed=0, shared=shared), part(2, steps=steps, seed=1, shared=shared)]
    for p in parts:
        scorer.add(p)
    scores = scorer.finish()
    assert len({image.numpy().tobytes() for image in reward.seen}) == len(reward.seen) == scores.queries
    spared = 5 if shared and (plan != "final" or steps == 1) else 0  # the first step's image, in 5 groups of 2 branches
    most = 10 * {"all": steps, "final": 1}.get(plan, min(3, steps)) - spared
    assert scores.queries <= most if plan.endswith("anchors") else scores.queries == most
    x0 = torch.cat([p.x0 for p in parts])
    exact = 2 * x0[..., 0, 0, 0]
    assert torch.equal(scores.last, exact[..., -1])
    assert torch.equal(scores.dense[..., -1], exact[..., -1])
    if plan == "all":
        assert torch.equal(scores.dense, exact)
    if plan == "final":
        assert scores.first is None and not scores.dense[..., :-1].any()
    if plan == "anchors":
        wanted = query_steps(x0)
        assert torch.equal(scores.dense, interpolate(similarities(x0, wanted), wanted, exact.gather(-1, wanted)))
    if plan == "group_anchors":
        wanted, cosines = group_query_steps(x0), similarities(x0, group_query_steps(x0)).mean(1, keepdim=True)
        assert (wanted == wanted[:, :1]).all()
        assert torch.equal(scores.dense, interpolate(cosines.expand(-1, 2, -1, -1), wanted, exact.gather(-1, wanted)))


def test_a_group_s_weights_put_no_difference_where_rewards_have_none() -> None:
    """A trajectory's own weights give equal rewards at every queried step and unequal ones in between."""
    p = part(20, steps=6)
    assert p.x0 is not None
    p.x0[:, 1, :, 0, 0, 0] = p.x0[:, 0, :, 0, 0, 0]  # what is rewarded is the same in both branches, and nothing else
    difference = {}
    for plan in ("anchors", "group_anchors"):
        scorer = Scorer(Identity(), RewardMix({"r": FirstPixel()}, {"r": 1.0}), REWARD_PLANS[plan]())
        scorer.add(p)
        dense = scorer.finish().dense
        difference[plan] = (dense[:, 0] - dense[:, 1]).abs().max()
    assert difference["group_anchors"] == 0 and difference["anchors"] > 0.1


def test_prompts_and_metadata_belong_to_the_images() -> None:
    reward = FirstPixel()
    scorer = Scorer(Identity(), RewardMix({"r": reward}, {"r": 1.0}), AllSteps())
    parts = [part(2, seed=5), part(1, seed=6)]
    for p in parts:
        scorer.add(p)
    scorer.finish()
    prompts = [prompt for prompts, _ in reward.calls for prompt in prompts]
    groups = [record["group"] for _, records in reward.calls for record in records]
    expected = 8 * ["prompt 5.0"] + 8 * ["prompt 5.1"] + 8 * ["prompt 6.0"]
    assert prompts == [f"prompt {s}.{i}" for s, i in groups] == expected
    assert torch.equal(torch.stack(reward.seen), torch.cat([p.x0.flatten(0, 2) for p in parts]))


def test_a_remote_reward_works_while_sampling_goes_on() -> None:
    second_part_is_sampled = threading.Event()

    class Remote(FirstPixel):
        remote = True

        def __call__(self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> Tensor:
            if not second_part_is_sampled.wait(20):
                raise TimeoutError("sampling waited for the reward")
            return super().__call__(images, prompts, metadata)

    remote = PlacedReward("remote", Remote(), batch_size=4, device="cpu")
    scorer = Scorer(Identity(), RewardMix({"remote": remote}, {"remote": 1.0}), AllSteps())
    parts = [part(2, seed=0), part(2, seed=1)]
    scorer.add(parts[0])
    scorer.add(parts[1])
    second_part_is_sampled.set()
    assert torch.equal(scorer.finish().dense, torch.cat([p.x0 for p in parts])[..., 0, 0, 0])


def test_the_failure_of_a_remote_reward_is_raised() -> None:
    class Remote:
        remote = True

        def __call__(self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> Tensor:
            raise OSError("the line is dead")

    scorer = Scorer(Identity(), RewardMix({"r": Remote()}, {"r": 1.0}), FinalStep())
    scorer.add(part(2))
    with pytest.raises(RewardError, match="the line is dead"):
        scorer.finish()


def test_an_offloaded_model_is_resident_while_it_is_used() -> None:
    moves: list[str] = []

    class Model(FirstPixel):
        def to(self, device: torch.device | str) -> None:
            moves.append(str(device))

    placed = PlacedReward("m", Model(), batch_size=2, device="cpu:0", offload=True)
    mix = RewardMix({"m": placed}, {"m": 1.0})
    with mix.resident():
        scorer = Scorer(Identity(), mix, FinalStep())
        for seed in range(3):
            scorer.add(part(2, seed=seed))
        scorer.finish()
    assert moves == ["cpu", "cpu:0", "cpu"]
    placed(torch.zeros(3, 3, 4, 4), [""] * 3, [{}] * 3)
    assert moves == ["cpu", "cpu:0", "cpu", "cpu:0", "cpu"]


class Fixed(AllSteps):
    """Asks for the same columns of steps in every trajectory."""

    columns: tuple[int, ...] = ()

    def steps(self, x0: Tensor) -> Tensor:
        return torch.tensor(self.columns).expand(*x0.shape[:2], -1)


@pytest.mark.parametrize("columns", [(0, -1), (0, 4), (3, 0), (1, 3)])
def test_a_plan_that_chooses_steps_that_are_not_there_is_refused(columns: tuple[int, ...]) -> None:
    """A step of -1 would be the last image of the trajectory before."""
    plan = type("Chosen", (Fixed,), {"columns": columns})()
    with pytest.raises(UserError, match="reward plan Chosen chose steps outside 0 … 3"):
        Scorer(Identity(), RewardMix({"r": FirstPixel()}, {"r": 1.0}), plan).add(part(2))
    plan = type("Chosen", (Fixed,), {"columns": (0, 3)})()
    Scorer(Identity(), RewardMix({"r": FirstPixel()}, {"r": 1.0}), plan).add(part(2))
