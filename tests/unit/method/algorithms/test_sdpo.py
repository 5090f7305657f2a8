"""SDPO's loss against numbers by hand, and its symmetries."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sdpo.method.algorithms import SDPO
from sdpo.method.types import LossOutput, StepBatch


def sdpo(
    new: Tensor, old: Tensor, advantage: Tensor, index: Tensor, mask: Tensor | None = None, **setting: float
) -> LossOutput:
    """The published loss; every step has a density unless a mask says otherwise."""
    mask = torch.ones(len(new)) if mask is None else mask
    return SDPO(**setting).loss(StepBatch(new, old, advantage, index, mask))  # type: ignore[arg-type]


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10**6))
def test_swapping_the_branches_leaves_the_loss_unchanged(seed: int) -> None:
    torch.manual_seed(seed)
    new, old, advantage = torch.randn(3, 5, 2).unbind(0)
    index = torch.arange(5)
    there = sdpo(new, old, advantage, index).loss
    back = sdpo(new.flip(1), old.flip(1), advantage.flip(1), index).loss
    torch.testing.assert_close(there, back)


def test_equal_advantages_on_policy_give_no_loss_and_no_gradient() -> None:
    new = torch.randn(4, 2, requires_grad=True)
    loss = sdpo(new, new.detach(), torch.ones(4, 2), torch.arange(4)).loss
    loss.backward()
    assert loss == 0 and (new.grad == 0).all()


def test_loss_by_hand_with_the_clip_active() -> None:
    new = torch.tensor([[3e-4, 0.0]], requires_grad=True)
    output = sdpo(new, torch.zeros(1, 2), torch.tensor([[9.0, -9.0]]), torch.tensor([2]), temporal_decay=0.5)
    # w = ¼; ΔA = 10 after clipping at 5; Δρ = 3e-4, clipped 1e-4: the clipped error is the larger one.
    torch.testing.assert_close(output.loss, torch.tensor((0.25 * 1e-4 - 10) ** 2))
    assert output.metrics["clip_fraction"] == 1 and output.metrics["advantage_clip_fraction"] == 1
    output.loss.backward()
    assert (new.grad == 0)[0, 0], "no gradient through a clamped log-probability"


def test_more_branches_form_all_pairs() -> None:
    torch.manual_seed(0)
    new, old, advantage = torch.randn(3, 2, 3).unbind(0)
    index = torch.tensor([0, 3])
    pairs = [(0, 1), (0, 2), (1, 2)]
    each = [sdpo(new[:, p], old[:, p], advantage[:, p], index).loss for p in map(list, pairs)]
    torch.testing.assert_close(sdpo(new, old, advantage, index).loss, torch.stack(each).mean())


def test_masked_steps_do_not_count() -> None:
    new = torch.randn(2, 2, requires_grad=True)
    sdpo(new, torch.zeros(2, 2), torch.randn(2, 2), torch.tensor([0, 1]), mask=torch.tensor([1.0, 0.0])).loss.backward()
    assert new.grad is not None and (new.grad[1] == 0).all() and (new.grad[0] != 0).all()


def test_sdpo_refuses_one_branch() -> None:
    with pytest.raises(ValueError, match="at least 2"):
        SDPO(branches=1)
