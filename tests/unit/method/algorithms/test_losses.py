"""The algorithms against numbers by hand, and the property that characterises it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from sdpo.method.algorithms import D3PO, DDPO, GRPO, POLICY_ALGORITHMS, PRDP, REBEL
from sdpo.method.algorithms.base import branch_pairs
from sdpo.method.types import LossOutput, StepBatch, TrajectoryBatch


def step_batch(
    log_prob: list[list[float]],
    advantage: list[list[float]],
    old: list[list[float]] | None = None,
    reference: list[list[float]] | None = None,
    mask: list[float] | None = None,
) -> StepBatch:
    values = torch.tensor(log_prob, dtype=torch.float64, requires_grad=True)
    rows = len(log_prob)
    return StepBatch(
        log_prob=values,
        old_log_prob=torch.zeros_like(values) if old is None else torch.tensor(old, dtype=torch.float64),
        advantage=torch.tensor(advantage, dtype=torch.float64),
        step_index=torch.zeros(rows, dtype=torch.long),
        mask=torch.ones(rows) if mask is None else torch.tensor(mask),
        reference_log_prob=torch.zeros_like(values) if reference is None else torch.tensor(reference).double(),
    )


def trajectory_batch(
    log_ratio: list[list[list[float]]], advantage: list[list[float]], mask: list[float] | None = None
) -> TrajectoryBatch:
    values = torch.tensor(log_ratio, dtype=torch.float64, requires_grad=True)
    steps = values.shape[-1]
    return TrajectoryBatch(
        log_prob=values,
        old_log_prob=torch.zeros_like(values),
        advantage=torch.tensor(advantage, dtype=torch.float64),
        mask=torch.ones(steps) if mask is None else torch.tensor(mask),
        reference_log_prob=torch.zeros_like(values),
    )


def gradient(output: LossOutput, batch: StepBatch | TrajectoryBatch) -> Tensor:
    (found,) = torch.autograd.grad(output.loss, batch.log_prob)
    return found


def close(found: Tensor, expected: Any) -> bool:
    return torch.allclose(found.double(), torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-12)


# -- ddpo and grpo -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", [DDPO(clip_range=0.1), GRPO(clip_range=0.1)])
def test_ratio_by_hand_and_clipping_on_both_signs(algorithm: DDPO | GRPO) -> None:
    up, down = math.log(1.5), math.log(0.5)
    # Rows: a good sample that became likelier than the range allows, and less likely; the same for a bad one.
    batch = step_batch([[up, down], [up, down]], [[2.0, 2.0], [-2.0, -2.0]])
    output = algorithm.loss(batch)
    # −A r, −A clip(r): (−3, −2.2), (−1, −1.8), (3, 2.2), (1, 1.8); the larger counts.
    assert output.loss.item() == pytest.approx((-2.2 - 1.0 + 3.0 + 1.8) / 4)
    # Where the clipped term counts there is no gradient; elsewhere d(−A r)/dℓ = −A r.
    assert close(gradient(output, batch), [[0.0, -1.0 / 4], [3.0 / 4, 0.0]])
    assert output.metrics["clip_fraction"] == 0.5


def test_ddpo_on_policy_is_the_policy_gradient() -> None:
    batch = step_batch([[0.0, 0.0], [0.0, 0.0]], [[1.0, -2.0], [9.0, 0.0]])
    output = DDPO().loss(batch)
    assert close(gradient(output, batch), [[-0.25, 0.5], [-5 / 4, 0.0]])  # 9 is clipped to 5
    assert output.metrics["advantage_clip_fraction"] == 0.25 and output.metrics["clip_fraction"] == 0


def test_ddpo_takes_single_trajectories_and_clipping_can_be_off() -> None:
    batch = step_batch([[math.log(2)]], [[1.0]])
    assert DDPO(branches=1, clip_range=0).loss(batch).loss.item() == pytest.approx(-2)


# -- d3po ----------------------------------------------------------------------------------------------------


def test_d3po_by_hand() -> None:
    # The second branch is the better one: its margin is (0.2 − 0.1) − (0.5 − 0.1) = −0.3.
    batch = step_batch([[0.5, 0.2]], [[0.0, 1.0]], reference=[[0.1, 0.1]])
    output = D3PO(beta=2.0, clip_range=0).loss(batch)
    assert output.loss.item() == pytest.approx(math.log(1 + math.exp(0.6)))
    slope = 2.0 / (1 + math.exp(-0.6))  # β σ(−β margin), towards the better branch
    assert close(gradient(output, batch), [[slope, -slope]])
    assert output.metrics["preference_accuracy"] == 0


def test_d3po_does_not_care_which_branch_is_named_first() -> None:
    generator = torch.Generator().manual_seed(0)
    values = [torch.randn(5, 2, generator=generator).tolist() for _ in range(3)]
    swapped = [[row[::-1] for row in rows] for rows in values]
    here, there = (step_batch(v[0], v[1], reference=v[2]) for v in (values, swapped))
    a, b = D3PO().loss(here), D3PO().loss(there)
    assert a.loss.item() == pytest.approx(b.loss.item(), rel=1e-12)
    assert torch.allclose(gradient(a, here), gradient(b, there).flip(1))


def test_d3po_learns_nothing_from_a_tie() -> None:
    batch = step_batch([[0.5, 0.2], [0.5, 0.2]], [[1.0, 1.0], [1.0, 2.0]])
    output = D3PO(clip_range=0).loss(batch)
    found = gradient(output, batch)
    assert close(found[0], [0.0, 0.0]) and (found[1] != 0).all()


# -- rebel and prdp ------------------------------------------------------------------------------------------


def test_rebel_by_hand() -> None:
    # Σ ρ: 0.3 and −0.1; Δ = 0.4, over η = 0.5: 0.8; ΔA = 2; residual −1.2.
    batch = trajectory_batch([[[0.1, 0.2], [0.0, -0.1]]], [[1.5, -0.5]])
    output = REBEL(log_ratio_scale=0.5).loss(batch)
    assert output.loss.item() == pytest.approx(1.44)
    slope = 2 * -1.2 / 0.5
    assert close(gradient(output, batch), [[[slope, slope], [-slope, -slope]]])
    assert output.metrics["log_ratio_difference"].item() == pytest.approx(0.4)


@pytest.mark.parametrize("algorithm", [REBEL(), PRDP()])
def test_equal_rewards_have_no_gradient_on_policy(algorithm: REBEL | PRDP) -> None:
    batch = trajectory_batch([[[0.0] * 3] * 2] * 4, [[0.7, 0.7]] * 4)
    output = algorithm.loss(batch)
    assert output.loss == 0 and (gradient(output, batch) == 0).all()


@pytest.mark.parametrize("algorithm", [REBEL(clip_range=0.1), PRDP(clip_range=0.1)])
def test_each_step_is_clipped_and_the_larger_error_counts(algorithm: REBEL | PRDP) -> None:
    """The policy that sampled is the base model here, so that both algorithms are the same."""
    # ρ = (0.3, 0.05) and 0: Δ = 0.35, clipped at 0.1 per step 0.15. Towards a target of 1 the clipped error is larger.
    batch = trajectory_batch([[[0.3, 0.05], [0.0, 0.0]]], [[1.0, 0.0]])
    output = algorithm.loss(batch)
    assert output.loss.item() == pytest.approx((0.15 - 1) ** 2)
    slope = 2 * (0.15 - 1)  # the step beyond the range has no gradient
    assert close(gradient(output, batch), [[[0.0, slope], [-slope, -slope]]])
    assert output.metrics["clip_fraction"] == 1
    # Away from a target of −1 the unclipped error is larger, and pulls everything back.
    batch = trajectory_batch([[[0.3, 0.05], [0.0, 0.0]]], [[-1.0, 0.0]])
    output = algorithm.loss(batch)
    assert output.loss.item() == pytest.approx(1.35**2)
    assert close(gradient(output, batch), [[[2.7, 2.7], [-2.7, -2.7]]])


def test_prdp_regresses_on_the_ratio_to_the_base_model_and_clips_around_the_last_policy() -> None:
    # The last policy is 0.5 above the base model at the first step of the first branch, the present one 0.7.
    batch = trajectory_batch([[[0.7, 0.0], [0.0, 0.0]]], [[0.5, 0.0]])
    batch.old_log_prob[0, 0, 0] = 0.5
    # Unclipped 0.7 − 0.5 = 0.2; clipped to 0.5 + 0.1: 0.6 − 0.5 = 0.1. The larger error is the unclipped one.
    output = PRDP(clip_range=0.1).loss(batch)
    assert output.loss.item() == pytest.approx(0.04)
    assert output.metrics["log_ratio_to_reference"].item() == pytest.approx(0.7 / 4)
    assert output.metrics["approx_kl"].item() == pytest.approx(0.2**2 / 2 / 4)
    # REBEL measures from the last policy: 0.2 − 0.5.
    assert REBEL().loss(batch).loss.item() == pytest.approx(0.09)


def test_steps_that_are_masked_do_not_count() -> None:
    batch = trajectory_batch([[[0.1, 9.0], [0.0, -9.0]]], [[1.0, 0.0]], mask=[1.0, 0.0])
    output = REBEL().loss(batch)
    assert output.loss.item() == pytest.approx(0.81) and close(gradient(output, batch)[..., 1], [[0.0, 0.0]])
    for algorithm in (DDPO(), GRPO(), D3PO()):
        steps = step_batch([[0.1, 0.2], [0.0, 0.0]], [[1.0, 0.0]] * 2, mask=[0.0, 1.0])
        found = gradient(algorithm.loss(steps), steps)
        assert (found[0] == 0).all() and (found[1] != 0).any(), algorithm


# -- all of them ---------------------------------------------------------------------------------------------


def test_pairs_of_branches() -> None:
    assert branch_pairs(torch.tensor([[1.0, 2.0, 4.0]])).tolist() == [[-1.0, -3.0, -2.0]]
    assert branch_pairs(torch.zeros(5, 4, 7)).shape == (5, 6, 7)


@pytest.mark.parametrize("name", POLICY_ALGORITHMS)
def test_a_gradient_step_prefers_the_better_branch(name: str) -> None:
    """The first-order property that all share: on policy, descent raises the better branch over the worse one."""
    algorithm = POLICY_ALGORITHMS[name](branches=2)
    if not algorithm.takes_trajectories:
        batch: Any = step_batch([[0.0, 0.0]], [[1.0, -1.0]])
        direction = -gradient(algorithm.loss(batch), batch)
    else:
        batch = trajectory_batch([[[0.0, 0.0], [0.0, 0.0]]], [[1.0, -1.0]])
        direction = -gradient(algorithm.loss(batch), batch)[..., 0]
    assert direction[0, 0] > 0 > direction[0, 1]


@pytest.mark.parametrize("name", POLICY_ALGORITHMS)
def test_fields_are_checked(name: str) -> None:
    least = 1 if name == "ddpo" else 2
    for wrong in ({"branches": least - 1}, {"discount": 1.5}):
        with pytest.raises(ValueError, match=f"algorithm.{next(iter(wrong))}"):
            POLICY_ALGORITHMS[name](**wrong)
