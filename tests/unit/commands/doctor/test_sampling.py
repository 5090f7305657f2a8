"""The checks of sampling find what spoils a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from sdpo import Config
from sdpo.commands.doctor.probe import Probe
from sdpo.commands.doctor.sampling import check_determinism, check_images, check_log_prob, check_log_ratio


def status(findings: Any) -> str:
    (found,) = findings
    return str(found.status)


@pytest.mark.parametrize("shared", [False, True])
def test_the_probe_sees_each_step_as_it_was_sampled(
    make_config: Callable[..., Config], make_probe: Callable[[Config], Probe], shared: bool
) -> None:
    sample = {"num_steps": 3, "prompts_per_epoch": 8, "share_first_step": shared}
    probe = make_probe(make_config(sample=sample))
    assert probe.first.shared_first_step == shared
    for groups in (1, 3):
        for step in range(3):
            found = probe.log_prob(step, groups)
            assert found.shape == (2,) and found.requires_grad
            torch.testing.assert_close(found.detach(), probe.first.log_prob[0, :, step], rtol=1e-5, atol=1e-5)


def test_a_network_that_draws_random_numbers_is_found(probe: Probe, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone, clean = probe.parts.backbone, probe.parts.backbone.network

    def dropout(*arguments: Any) -> torch.Tensor:
        return torch.nn.functional.dropout(clean(*arguments), 0.1)

    monkeypatch.setattr(backbone, "network", dropout)
    assert status(check_log_ratio(probe)) == "FAIL"
    assert status(check_determinism(probe)) == "FAIL"
    monkeypatch.setattr(backbone, "network", lambda *a: clean(*a) * (1 + 3e-5))
    assert status(check_log_ratio(probe)) == "WARN"


@pytest.mark.parametrize(("sampled", "updated"), [(4, 4), (4, 1), ("auto", "auto")])
def test_micro_batches_that_round_differently_are_found(
    make_config: Callable[..., Config],
    make_probe: Callable[[Config], Probe],
    monkeypatch: pytest.MonkeyPatch,
    tiny_pipeline: Any,
    sampled: Any,
    updated: Any,
) -> None:
    sample = {"num_steps": 3, "prompts_per_epoch": 8, "micro_batch": sampled}
    train = {"batch_size": 4, "micro_batch": updated}
    model = {"path": str(tiny_pipeline), "dtype": "bfloat16"}
    probe = make_probe(make_config(model=model, sample=sample, train=train))
    clean = probe.parts.backbone.network
    rounded = lambda latents, *rest: clean(latents, *rest) * (1 + 1e-2 * len(latents))  # noqa: E731
    monkeypatch.setattr(probe.parts.backbone, "network", rounded)
    (found,) = check_log_ratio(Probe.draw(probe.parts))
    if sampled == updated:
        assert found.status == "ok"
    else:
        assert found.status == "FAIL" and "sample.micro_batch (now 4) and train.micro_batch (now 1) equal" in found.text


def test_values_that_are_not_finite_are_found(probe: Probe) -> None:
    assert status(check_log_prob(probe)) == "ok"
    probe.groups[1].log_prob[0, 1, 2] = torch.nan
    (found,) = check_log_prob(probe)
    assert found.status == "FAIL" and "log-probability not finite at step 2 of 3" in found.text


def test_no_random_step_is_no_training(probe: Probe) -> None:
    still = [replace(group, stochastic=torch.zeros(3).bool()) for group in probe.groups]
    assert status(check_log_prob(Probe(probe.parts, still))) == "FAIL"


def test_images_that_cannot_be_scored_are_found(probe: Probe) -> None:
    samples = probe.decode()
    assert check_images(samples.images).status == "ok"
    assert samples.prompts == ["cat", "cat", "dog", "dog"] and len(samples.metadata) == len(samples.images) == 4
    assert check_images(torch.full((4, 3, 8, 8), torch.nan)).status == "FAIL"
    assert check_images(2 * samples.images + 1).status == "FAIL"
    assert check_images(torch.zeros(4, 3, 8, 8)).status == "WARN"  # as a decoder that overflowed draws them
