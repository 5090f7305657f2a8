"""Groups that branch at one step: what their branches have in common, what they cost, and how they are updated."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.branched import branched_groups, branched_parts
from helpers.plane_model import Plane, optimize
from helpers.updates import update_settings
from torch import Tensor

from sdpo.loop.policy import Policy, PromptEmbeddings
from sdpo.loop.policy_update import PolicyUpdate
from sdpo.loop.reward_mix import RewardMix
from sdpo.loop.scoring import Scorer
from sdpo.method.algorithms import POLICY_ALGORITHMS
from sdpo.method.branching import Branching
from sdpo.method.reward_plans import AllSteps, Anchors, FinalStep, RewardPlan
from sdpo.method.types import Trajectories

STEPS, GROUPS = 5, 10
ANYWHERE = Branching((1.0,) * (STEPS - 1))


def spread(values: Tensor) -> Tensor:
    """The largest difference between the branches, [B, K, …] → [B, …]."""
    return values.amax(1) - values.amin(1)


def images(part: Trajectories) -> Tensor:
    """x̂ as points of the plane, [B, K, W, 2]."""
    assert part.x0 is not None
    return part.x0.flatten(3)


def test_branches_share_their_prefix_and_part_at_the_step() -> None:
    (part,) = branched_parts(Policy(Plane()), Branching.at(2, STEPS), range(GROUPS), branches=3)
    assert part.states.shape == (GROUPS, 3, 2, 2, 1, 1) and part.log_prob.shape == (GROUPS, 3, 1)
    assert images(part).shape == (GROUPS, 3, 3, 2), "x̂ of the steps 2, 3 and 4"
    assert (spread(part.states[:, :, 0]) == 0).all() and (spread(images(part)[:, :, 0]) == 0).all()
    assert (spread(part.states[:, :, 1]) > 0).all() and (spread(images(part)[:, :, 1]) > 0).all()
    assert len({tuple(row) for row in part.states[:, 0, 0].flatten(1).tolist()}) == GROUPS


@pytest.mark.parametrize("after", ["common", "none", "independent"])
def test_the_noise_that_follows(after: Any) -> None:
    """The model is linear: where the branches get the same noise, one factor takes their distance from x̂ to x̂."""
    (part,) = branched_parts(Policy(Plane()), Branching.at(0, STEPS, after), range(GROUPS))
    distance = images(part)[:, 0] - images(part)[:, 1]  # [B, W, 2]
    factors = distance[:, 4] / distance[:, 1]
    same = (factors - factors[0, 0]).abs().amax() < 1e-3
    assert same == (after != "independent"), factors


def test_deterministic_steps_follow_the_sampler_without_noise() -> None:
    policy = Policy(Plane())
    (part,) = branched_parts(policy, Branching.at(1, STEPS, "none"), range(GROUPS))
    x, quiet = part.states[:, 0, 1], policy.backbone.denoiser(STEPS, 0.0)
    for step in range(2, STEPS):
        transition = policy.transition(quiet, x, torch.full((GROUPS,), step), {"nothing": torch.zeros(GROUPS, 1)})
        torch.testing.assert_close(transition.x0.detach().flatten(1), images(part)[:, 0, step - 1])
        x = transition.mean.detach()


@pytest.mark.parametrize("lookahead", [None, 1, 2])
def test_the_counters_hold_the_evaluations_by_hand(lookahead: int | None) -> None:
    policy, branches = Policy(Plane()), 4
    branching = Branching((1.0,) * (STEPS - 1), lookahead=lookahead)
    part = branched_groups(policy, branching, GROUPS, branches=branches)
    assert part.branched is not None
    steps = part.branched.step.tolist()
    assert len(set(steps)) > 1
    last = [STEPS - 1 if lookahead is None else min(STEPS - 1, step + lookahead) for step in steps]
    by_hand = sum(i + 1 + branches * (e - i) for i, e in zip(steps, last, strict=True))
    assert policy.evaluations == by_hand == branching.evaluations(part.branched.step, branches)
    assert part.branched.seen.tolist() == [e - i + 1 for i, e in zip(steps, last, strict=True)]


def test_a_group_depends_on_its_index_alone() -> None:
    policy = Policy(Plane())
    (whole,) = branched_parts(policy, ANYWHERE, range(GROUPS))
    for micro_batch in (1, 2):
        some = branched_parts(policy, ANYWHERE, [5, 2, 3], micro_batch=micro_batch)
        found = Trajectories.collect(some, 3)
        assert found.branched is not None and whole.branched is not None
        assert found.branched.step.tolist() == whole.branched.step[[5, 2, 3]].tolist()
        torch.testing.assert_close(found.states, whole.states[[5, 2, 3]])
        torch.testing.assert_close(found.log_prob, whole.log_prob[[5, 2, 3]])


@pytest.mark.parametrize("name", ["sdpo", "ddpo", "grpo", "d3po"])
@pytest.mark.parametrize("micro_batch", [GROUPS, 2])
def test_the_update_evaluates_each_group_once_with_log_ratio_0(name: str, micro_batch: int) -> None:
    policy, branches = Policy(Plane()), 3
    algorithm = POLICY_ALGORITHMS[name](branches=branches)
    groups = branched_groups(policy, ANYWHERE, GROUPS, branches=branches, micro_batch=micro_batch)
    settings = update_settings(batch_size=GROUPS, kl_weight=0.1)
    update = PolicyUpdate(policy, algorithm, settings, optimize(policy, torch.optim.SGD, lr=0.1))
    advantages = torch.randn(GROUPS, branches, 1, generator=torch.Generator().manual_seed(0))
    with_gradient, sampled = policy.with_gradient, policy.evaluations
    denoiser, embeddings = policy.backbone.denoiser(STEPS, 1.0), PromptEmbeddings(policy.backbone)
    result = update.run(groups, advantages, denoiser, embeddings, 1, micro_batch)
    assert result.metrics["on_policy_log_ratio"] == 0, "to the last bit"
    assert policy.with_gradient - with_gradient == GROUPS
    assert policy.evaluations - sampled == 2 * GROUPS, "and once more the reference model"
    assert policy.backbone.network_module.shift.abs().max() > 0  # type: ignore[union-attr,operator]


def test_the_gradient_is_that_of_the_step_by_itself() -> None:
    """One evaluation of the shared latent gives the gradient that each branch's own evaluation would give."""
    policy, branches = Policy(Plane()), 3
    groups = branched_groups(policy, ANYWHERE, GROUPS, branches=branches)
    assert groups.branched is not None
    advantages = torch.randn(GROUPS, branches, 1, generator=torch.Generator().manual_seed(0))
    update = PolicyUpdate(
        policy,
        POLICY_ALGORITHMS["ddpo"](branches=branches, clip_range=0.0),
        update_settings(batch_size=GROUPS),
        optimize(policy, torch.optim.SGD, lr=1.0, max_grad_norm=1e9),
    )
    denoiser = policy.backbone.denoiser(STEPS, 1.0)
    update.run(groups, advantages, denoiser, PromptEmbeddings(policy.backbone), 1, GROUPS)
    stepped = policy.backbone.network_module.shift.detach().clone()  # type: ignore[union-attr,operator]
    # By hand: the loss is the mean of −A ℓ, and SGD of rate 1 steps by minus its gradient.
    fresh = Policy(Plane())
    step = groups.branched.step.repeat_interleave(branches)
    x, following = groups.states.flatten(0, 1).unbind(1)
    moved = fresh.transition(denoiser, x, step, {"nothing": torch.zeros(len(x), 1)})
    log_prob = -0.5 * ((following - moved.mean) / moved.std.reshape(-1, 1, 1, 1)).square().flatten(1).mean(1)
    (-(advantages.flatten() * log_prob).mean()).backward()
    torch.testing.assert_close(stepped, -fresh.backbone.network_module.shift.grad)  # type: ignore[union-attr,operator]


@pytest.mark.parametrize(("plan", "of_group"), [(AllSteps(), 1 + 3 * 2), (FinalStep(), 3), (Anchors(), None)])
def test_rewards_of_the_branched_part_in_order(plan: RewardPlan, of_group: int | None) -> None:
    """Groups that stop at different steps are scored by the number of images that they show."""
    policy = Policy(Plane())
    branching = Branching((1.0,) * (STEPS - 1), lookahead=2)
    mix = RewardMix({"sum": lambda images, prompts, metadata: images.flatten(1).sum(1)}, {"sum": 1.0})
    scorer = Scorer(policy.backbone, mix, plan, shows_first=False, shows_last=False)
    parts = branched_parts(policy, branching, range(GROUPS), branches=3, micro_batch=4)
    for part in parts:
        scorer.add(part)
    scores = scorer.finish()
    points = Trajectories.collect(parts, GROUPS).branched
    assert points is not None and set(points.seen.tolist()) == {2, 3}
    assert scores.first is None and scores.last is None and scores.raw == {}
    if of_group is not None:  # a group that branches at the last step but one shows one image less of each branch
        shorter = 3 if isinstance(plan, AllSteps) else 0
        assert scores.queries == GROUPS * of_group - shorter * int((points.seen == 2).sum())
    for row, seen in enumerate(points.seen.tolist()):
        shown = images(parts[row // 4])[row % 4].sum(-1)  # [K, W]
        torch.testing.assert_close(scores.dense[row, :, seen - 1], shown[:, seen - 1])
        assert (scores.dense[row, :, seen:] == 0).all()
        first = scores.dense[row, :, 0]
        assert (first == 0).all() if isinstance(plan, FinalStep) else (first == first[0]).all()
