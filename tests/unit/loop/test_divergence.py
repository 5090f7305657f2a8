"""A value that is not finite is named where it begins, and its optimizer step leaves nothing behind."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.one_process import OneProcess
from helpers.plane_model import Plane, optimize, sample, sample_parts
from helpers.spoiled_loss import spoiled_loss
from helpers.updates import update_settings

from sdpo.loop.divergence import FiniteWatch, NonFinite, NotFiniteError, check_trajectories
from sdpo.loop.policy import Policy, PromptEmbeddings
from sdpo.loop.policy_update import PolicyUpdate, UpdateResult
from sdpo.method.algorithms import SDPO

T, GROUPS = 3, 4
PROMPTS = ["cat", "dog", "fox", "owl"]


def spoiled(at: int, factor: float = float("nan")) -> SDPO:
    """The loss of the n-th micro-batch, from 1, is times a factor; n = 0 spoils none."""
    changed = type("Spoiled", (SDPO,), {"loss": spoiled_loss(SDPO.loss, at, lambda loss: loss * factor)})
    return changed(clip_range=0.0)


def make(algorithm: SDPO) -> PolicyUpdate:
    policy = Policy(Plane())
    optimization = optimize(policy, torch.optim.AdamW, lr=0.1, fused=True, ema_decay=0.9)
    return PolicyUpdate(policy, algorithm, update_settings(batch_size=2, skip_nonfinite=True), optimization)


def run(updater: PolicyUpdate) -> UpdateResult:
    trajectories = sample(updater.policy, T, PROMPTS)
    advantages = torch.randn(trajectories.log_prob.shape, generator=torch.Generator().manual_seed(1))
    policy = updater.policy
    denoiser, embeddings = policy.backbone.denoiser(T, 1.0), PromptEmbeddings(policy.backbone)
    return updater.run(trajectories, advantages, denoiser, embeddings, epoch=1, micro_batch=1)


@pytest.mark.parametrize("factor", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_skips_its_step_and_no_other(factor: float, caplog: pytest.LogCaptureFixture) -> None:
    # Six optimizer steps of two micro-batches each; the fourth step has the bad one.
    skipping, expected = make(spoiled(8, factor)), make(spoiled(0))
    step = expected.optimization.optimizer.step
    done: list[int] = []

    def all_but_the_fourth(*arguments: Any) -> None:
        done.append(0)
        if len(done) != 4:
            step(*arguments)

    expected.optimization.optimizer.step = all_but_the_fourth  # type: ignore[method-assign]
    skipped, undisturbed = run(skipping), run(expected)
    assert len(done) == 6 and skipped.metrics["skipped_steps"] == 1
    (ours,), (theirs,) = skipping.optimization.parameters, expected.optimization.parameters
    assert torch.equal(ours, theirs) and ours.abs().max() > 0
    for name, value in expected.optimization.optimizer.state[theirs].items():
        assert torch.equal(skipping.optimization.optimizer.state[ours][name], value), name
    assert all(value.isfinite() for value in skipped.metrics.values()), skipped.metrics
    found = skipped.watch.first()
    assert found is not None and found.optimizer_step == 3 and found.what.startswith("the loss of step ")
    assert sum(f"prompt {p!r}" in found.what for p in PROMPTS) == 1
    assert undisturbed.watch.first() is None
    expected.check(undisturbed, 5, OneProcess())
    skipping.check(skipped, 5, OneProcess(is_main=False))
    assert not caplog.messages
    skipping.check(skipped, 5, OneProcess())
    assert caplog.messages == [
        f"epoch 5: {found.what} was not finite; its optimizer step, and others like it, were skipped"
    ]


def test_a_skipped_step_is_warned_of_before_a_weight_ends_the_run(caplog: pytest.LogCaptureFixture) -> None:
    updater = make(spoiled(8))
    result = run(updater)
    with torch.no_grad():
        updater.optimization.parameters[0].fill_(float("inf"))
    with pytest.raises(NotFiniteError, match="the weight shift"):
        updater.check(result, 5, OneProcess())
    assert len(caplog.messages) == 1 and "were skipped" in caplog.messages[0]


def test_a_gradient_names_its_parameter() -> None:
    updater = make(spoiled(0))
    calls: list[int] = []

    def spoil(gradient: torch.Tensor) -> torch.Tensor:
        calls.append(0)
        return gradient * float("inf") if len(calls) == 5 else gradient

    updater.optimization.parameters[0].register_hook(spoil)
    result = run(updater)
    assert result.metrics["skipped_steps"] == 1
    assert result.watch.first() == NonFinite(2, 2, "the gradient of shift")


def test_the_first_cause_is_named_before_its_consequences() -> None:
    watch = FiniteWatch(PROMPTS)
    nan = torch.tensor(float("nan"))
    fine = torch.zeros(2, 2)
    bad = torch.tensor([[0.0, 0.0], [float("inf"), 0.0]])
    gradient = torch.zeros(2, 2)
    for log_prob, norm in ((fine, torch.tensor([1.0])), (bad, nan[None]), (bad, nan[None])):
        gradient.zero_()
        watch.add(slice(0, 2), torch.tensor([0, 1]), fine, torch.tensor(0.0))
        watch.add(slice(2, 4), torch.tensor([2, 0]), log_prob, log_prob.sum())
        watch.poison(gradient)
        watch.end_step(norm, ["w"])
    assert watch.first() == NonFinite(1, 0, "the log-probability of step 0 for prompt 'owl'")
    assert gradient.isnan().sum() == 1, "the other processes see it too"


@pytest.mark.parametrize("name", ["log_prob", "x0"])
def test_trajectories_that_are_not_finite(name: str) -> None:
    policy = Policy(Plane())
    (part,) = sample_parts(policy, T, PROMPTS, micro_batch=GROUPS)
    check_trajectories(part)
    getattr(part, name)[1, 1, 2] = float("nan")
    with pytest.raises(NotFiniteError, match="step 2 of branch 1 for prompt 'dog'"):
        check_trajectories(part)
