"""What is not finite is named where it begins, and its optimizer step leaves nothing behind."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from helpers.one_process import OneProcess
from helpers.plane_model import Plane, optimize
from helpers.updates import update_settings

from sdpo.loop.divergence import FiniteWatch, NonFinite, NotFiniteError, check_trajectories
from sdpo.loop.policy import Policy, PromptEmbeddings
from sdpo.loop.policy_update import PolicyUpdate, UpdateResult
from sdpo.loop.rollout import rollout
from sdpo.method.algorithms import SDPO
from sdpo.method.types import LossOutput, StepBatch, Trajectories
from sdpo.prompts import Prompt

T, GROUPS = 3, 4
PROMPTS = ["cat", "dog", "fox", "owl"]


@dataclass(frozen=True)
class Spoiled(SDPO):
    """The loss of its n-th micro-batch is times `factor`."""

    clip_range: float = 0.0
    at: int = -1
    factor: float = float("nan")
    calls: list[int] = field(default_factory=list)

    def loss(self, batch: StepBatch) -> LossOutput:
        self.calls.append(0)
        output = super().loss(batch)
        return LossOutput(output.loss * self.factor, output.metrics) if len(self.calls) - 1 == self.at else output


def sampled(policy: Policy) -> Trajectories:
    parts = rollout(
        policy, policy.backbone.denoiser(T, 1.0), PromptEmbeddings(policy.backbone), [Prompt(p) for p in PROMPTS],
        range(GROUPS), seed=0, epoch=1, branches=2, micro_batch=GROUPS,
    )  # fmt: skip
    return Trajectories.collect(parts, GROUPS)


def make(algorithm: SDPO) -> PolicyUpdate:
    policy = Policy(Plane())
    optimization = optimize(policy, torch.optim.AdamW, lr=0.1, fused=True, ema_decay=0.9)
    return PolicyUpdate(policy, algorithm, update_settings(batch_size=2, skip_nonfinite=True), optimization)


def run(updater: PolicyUpdate) -> UpdateResult:
    trajectories = sampled(updater.policy)
    advantages = torch.randn(trajectories.log_prob.shape, generator=torch.Generator().manual_seed(1))
    policy = updater.policy
    denoiser, embeddings = policy.backbone.denoiser(T, 1.0), PromptEmbeddings(policy.backbone)
    return updater.run(trajectories, advantages, denoiser, embeddings, epoch=1, micro_batch=1)


@pytest.mark.parametrize("factor", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_skips_its_step_and_no_other(factor: float, caplog: pytest.LogCaptureFixture) -> None:
    # Six optimizer steps of two micro-batches each; the fourth step has the bad one.
    skipping, expected = make(Spoiled(at=7, factor=factor)), make(Spoiled())
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
    updater = make(Spoiled(at=7))
    result = run(updater)
    with torch.no_grad():
        updater.optimization.parameters[0].fill_(float("inf"))
    with pytest.raises(NotFiniteError, match="the weight shift"):
        updater.check(result, 5, OneProcess())
    assert len(caplog.messages) == 1 and "were skipped" in caplog.messages[0]


def test_a_gradient_names_its_parameter() -> None:
    updater = make(Spoiled())
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
    (part,) = rollout(
        policy, policy.backbone.denoiser(T, 1.0), PromptEmbeddings(policy.backbone), [Prompt(p) for p in PROMPTS],
        range(GROUPS), seed=0, epoch=1, branches=2, micro_batch=GROUPS,
    )  # fmt: skip
    check_trajectories(part)
    getattr(part, name)[1, 1, 2] = float("nan")
    with pytest.raises(NotFiniteError, match="step 2 of branch 1 for prompt 'dog'"):
        check_trajectories(part)
