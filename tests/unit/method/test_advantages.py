"""Advantage normalisers against numbers by hand."""

from __future__ import annotations

import math

import pytest
import torch

from sdpo.errors import UserError
from sdpo.method.advantages import GroupNormalizer, Normalizer, PairNormalizer, PromptNormalizer, StepwiseNormalizer


def test_two_prompt_advantages_by_hand() -> None:
    normalizer = StepwiseNormalizer(buffer_size=32, min_count=3)
    young = normalizer.update(["a", "b"], torch.tensor([[[0.0], [2.0]], [[4.0], [6.0]]]))
    # Two entries a prompt: the batch's mean 3 and std √5.
    torch.testing.assert_close(young.flatten(), (torch.tensor([0.0, 2, 4, 6]) - 3) / (math.sqrt(5) + 1e-6))
    grown = normalizer.update(["a"], torch.tensor([[[4.0], [6.0]]]))
    # Four entries of "a": 0, 2, 4, 6.
    torch.testing.assert_close(grown.flatten(), (torch.tensor([4.0, 6]) - 3) / (math.sqrt(5) + 1e-6))


def test_the_normalizer_forgets_beyond_its_buffer_and_resumes_from_its_state() -> None:
    first = StepwiseNormalizer(buffer_size=4, min_count=2)
    first.update(["a"], torch.randn(1, 4, 3) * 100)
    second = StepwiseNormalizer(buffer_size=4, min_count=2)
    second.load_state_dict(first.state_dict())
    new = torch.randn(1, 4, 3)
    expected = (new - new.mean(1, keepdim=True)) / (new.std(1, correction=0, keepdim=True) + 1e-6)
    torch.testing.assert_close(second.update(["a"], new), expected)
    torch.testing.assert_close(first.update(["a"], new), expected)


def test_pair_normalisation_by_hand() -> None:
    advantages = PairNormalizer().update(["a", "b"], torch.tensor([[[0.0], [2.0]], [[10.0], [10.0]]]))
    # Deviations −1, 1, 0, 0; their root mean square √½.
    torch.testing.assert_close(advantages.flatten(), torch.tensor([-1.0, 1, 0, 0]) * math.sqrt(2), rtol=1e-4, atol=1e-6)


def test_pooled_statistics_of_a_prompt_mix_its_steps() -> None:
    returns = torch.tensor([[[4.0, 0.0], [2.0, 2.0]]]).repeat(8, 1, 1)  # mean 2, std √2 over both steps
    normalizer = PromptNormalizer(buffer_size=32, min_count=16)
    found = normalizer.update(["cat"] * 8, returns)
    assert torch.allclose(found[0], torch.tensor([[2.0, -2.0], [0.0, 0.0]]) / 2**0.5, atol=1e-5)


def test_group_normalisation_stays_within_the_group() -> None:
    returns = torch.tensor([[[1.0], [3.0]], [[100.0], [100.0]]])
    found = GroupNormalizer().update(["cat", "cat"], returns)
    assert torch.allclose(found, torch.tensor([[[-1.0], [1.0]], [[0.0], [0.0]]]), atol=1e-5)


def test_groups_at_one_step_each_are_compared_with_those_at_the_same_step() -> None:
    prompts, steps = ["a", "b", "a"], torch.tensor([2, 0, 2])
    returns = torch.tensor([[0.0, 2.0], [100.0, 104.0], [4.0, 6.0]])
    # Deviations of ±1 in the groups at step 2, and of ±2 in the one at step 0: each step has its own scale.
    pair = PairNormalizer().update_at(prompts, returns, steps)
    torch.testing.assert_close(pair, torch.tensor([[-1.0, 1.0]] * 3), rtol=1e-5, atol=0)
    stepwise = StepwiseNormalizer(min_count=2).update_at(prompts, returns, steps)
    # At step 2 prompt "a" has 0, 2, 4, 6 with mean 3 and std √5; at step 0 prompt "b" has 100 and 104.
    expected = torch.tensor([[-3 / math.sqrt(5), -1 / math.sqrt(5)], [-1.0, 1.0], [1 / math.sqrt(5), 3 / math.sqrt(5)]])
    torch.testing.assert_close(stepwise, expected, rtol=1e-4, atol=0)


def test_statistics_of_a_prompt_are_kept_by_step_or_pooled_and_resumed() -> None:
    for kind in (StepwiseNormalizer, PromptNormalizer):
        first, second = kind(buffer_size=4, min_count=4), kind(buffer_size=4, min_count=4)
        first.update_at(["a", "a"], torch.tensor([[0.0, 2.0], [50.0, 70.0]]), torch.tensor([0, 1]))
        second.load_state_dict(first.state_dict())
        for normalizer in (first, second):
            (found,) = normalizer.update_at(["a"], torch.tensor([[4.0, 6.0]]), torch.tensor([0]))
            seen = [0.0, 2, 4, 6] if kind is StepwiseNormalizer else [50.0, 70, 4, 6]  # the last four
            values = torch.tensor(seen)
            torch.testing.assert_close(found, (torch.tensor([4.0, 6]) - values.mean()) / values.std(correction=0))


def test_a_normaliser_with_statistics_must_say_which_step_they_are_of() -> None:
    class Mean(Normalizer):
        def update(self, prompts: list[str], returns: torch.Tensor) -> torch.Tensor:
            return returns - returns.mean()

    class RunningMean(Mean):
        def state_dict(self) -> dict[str, float]:
            return {"mean": 0.0}

    found = Mean().update_at(["a", "b"], torch.tensor([[0.0, 2.0], [5.0, 7.0]]), torch.tensor([0, 1]))
    torch.testing.assert_close(found, torch.tensor([[-1.0, 1.0], [-1.0, 1.0]]))
    with pytest.raises(UserError, match="RunningMean keeps statistics, but has no update_at"):
        RunningMean().update_at(["a"], torch.tensor([[0.0, 2.0]]), torch.tensor([0]))
