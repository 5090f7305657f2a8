"""Advantage normalisers against numbers by hand."""

from __future__ import annotations

import math

import torch

from sdpo.method.advantages import GroupNormalizer, PairNormalizer, PromptNormalizer, StepwiseNormalizer


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
