"""Scores, their weights and the reward's own direction: as training has them, and against known gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.plane_model import ALPHAS, Plane, optimize, sample
from helpers.updates import plane_update, run_update, shift
from torch import Tensor

from sdpo.loop.policy import Policy, PromptEmbeddings
from sdpo.loop.policy_factors import policy_factors
from sdpo.loop.reward_direction import RewardDirection
from sdpo.loop.reward_head import RewardHead
from sdpo.loop.reward_mix import RewardMix
from sdpo.loop.score_vectors import ScoreRecorder, ScoreVectors
from sdpo.loop.visits import Visits
from sdpo.method.algorithms import D3PO, DDPO, GRPO, REBEL, SDPO, Algorithm
from sdpo.method.augment import Augment
from sdpo.method.projection import RandomProjection
from sdpo.method.signal import direction_signal
from sdpo.method.types import Trajectories
from sdpo.prompts import Prompt

ALGORITHMS: list[Algorithm[Any]] = [
    SDPO(clip_range=0),
    SDPO(branches=3, temporal_decay=0.5, advantage_clip=0.8),
    DDPO(branches=2),
    GRPO(branches=3),
    D3PO(),
    REBEL(log_ratio_scale=0.5),
]


def record(policy: Policy, trajectories: Trajectories, reference: bool = False, **options: Any) -> ScoreVectors:
    parameters = list(policy.backbone.trainable_parameters().values())
    directions = options.pop("directions", torch.zeros(0, 2))
    network = policy.backbone.network_module
    recorder = ScoreRecorder(policy, network, parameters, RandomProjection(2, 16), directions, **options)
    steps = range(trajectories.num_steps)
    denoiser = policy.backbone.denoiser(trajectories.num_steps, 1.0)
    return recorder.record(trajectories, denoiser, PromptEmbeddings(policy.backbone), steps, reference=reference)


@pytest.mark.parametrize("last_step", [True, False])
@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=lambda a: type(a).__name__)
def test_scores_and_weights_are_the_gradient_of_training(algorithm: Algorithm[Any], last_step: bool) -> None:
    groups, steps = 4, 3
    visits = dict(last_step=last_step, accumulated=None, whole_trajectories=algorithm.takes_trajectories)
    update = plane_update(algorithm, lr=1.0, batch_size=groups, **visits)
    with torch.no_grad():
        update.optimization.parameters[0].copy_(torch.tensor([0.3, -0.2]).reshape(2, 1, 1))
    trajectories = sample(update.policy, steps, ["a", "b", "c", "d"], branches=algorithm.branches)
    advantages = torch.randn(groups, algorithm.branches, steps, generator=torch.Generator().manual_seed(1))
    found = record(update.policy, trajectories, algorithm.needs_reference)
    factors = policy_factors(algorithm, trajectories, advantages, Visits(**visits), found.reference_log_prob)
    gradients = torch.einsum("bkt,bktd->bd", factors, found.projected)
    before = shift(update)
    run_update(update, trajectories, advantages)
    visited = 1 if algorithm.takes_trajectories else steps - (not last_step)
    moved = (shift(update) - before).flatten() * groups * visited
    assert moved.norm() > 1e-3
    torch.testing.assert_close(gradients.sum(0), moved, rtol=1e-3, atol=1e-5)


def test_inner_products_with_directions_are_exact_and_scaling_the_loss_changes_nothing() -> None:
    policy = Policy(Plane())
    trajectories = sample(policy, 3, ["a", "b"])
    directions = torch.tensor([[1.0, 2.0], [0.0, -1.0], [3.0, 0.0]])
    found = record(policy, trajectories, directions=directions, loss_scale=1024.0)
    torch.testing.assert_close(found.along.float(), found.projected @ directions.T)
    torch.testing.assert_close(found.projected, record(policy, trajectories).projected)
    assert found.reference_log_prob is None and found.projected.shape == (2, 2, 3, 2)


def test_steps_that_are_left_out_have_no_score() -> None:
    policy = Policy(Plane())
    trajectories = sample(policy, 3, ["a", "b"])
    network, parameters = policy.backbone.network_module, list(policy.backbone.trainable_parameters().values())
    recorder = ScoreRecorder(policy, network, parameters, RandomProjection(2, 16), torch.zeros(0, 2), batch=3)
    done: list[int] = []
    denoiser, embeddings = policy.backbone.denoiser(3, 1.0), PromptEmbeddings(policy.backbone)
    found = recorder.record(trajectories, denoiser, embeddings, [1], advance=done.append)
    assert not found.projected[:, :, [0, 2]].any() and found.projected[:, :, 1].all()
    assert sum(done) == 4


# -- towards known gradients -------------------------------------------------------------------------------------------

WEIGHTS = torch.tensor([1.0, 0.5])


def reward(images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> Tensor:
    return images.flatten(1) @ WEIGHTS


reward.differentiable = True  # type: ignore[attr-defined]


def direction(policy: Policy, steps: int, count: int, micro_batch: int = 8) -> Tensor:
    optimization = optimize(policy, torch.optim.SGD, lr=1.0)
    head = RewardHead(policy.backbone, RewardMix({"r": reward}, {"r": 2.0}), Augment(), lambda r: r, decode_batch=5)
    climb = RewardDirection(policy, optimization, head, PromptEmbeddings(policy.backbone), 0, micro_batch)
    prompts = [Prompt("a")] * count
    found = climb(policy.backbone.denoiser(steps, 1.0), prompts, range(count), 1, optimization.parameters)
    assert all(parameter.grad is None for parameter in optimization.parameters)
    return found


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_the_direction_is_the_gradient_of_the_sampled_reward(steps: int) -> None:
    policy = Policy(Plane())
    found = direction(policy, steps, 6)

    def mean_reward(value: Tensor) -> float:
        with torch.no_grad():
            policy.backbone.network_module.shift.copy_(value.reshape(2, 1, 1))
        # The same noise: groups 0 … 5 of one branch.
        from helpers.plane_model import sample_parts

        (part,) = sample_parts(policy, steps, ["a"] * 6, micro_batch=6, branches=1)
        assert part.x0 is not None
        return 2 * (part.x0[:, 0, -1].flatten(1) @ WEIGHTS).mean().item()

    rise = [(mean_reward(0.5 * e) - mean_reward(-0.5 * e)) for e in torch.eye(2)]  # the model is linear in the shift
    torch.testing.assert_close(found, torch.tensor(rise), rtol=1e-3, atol=1e-4)
    assert torch.allclose(found, direction(Policy(Plane()), steps, 6, micro_batch=4), rtol=1e-5)


def test_the_mean_over_groups_is_the_known_policy_gradient() -> None:
    """DDPO's advantages r − mean over K = 2 branches have the expectation ½ ∇E r, of the mean over D = 2 elements."""
    policy, groups = Policy(Plane()), 1500
    denoiser = policy.backbone.denoiser(2, 1.0)
    trajectories = sample(policy, 2, ["a"] * groups)
    # x̂_1 = √ᾱ x_1 at shift 0, and the reward is linear in it.
    signal = ALPHAS[denoiser.timesteps[1]].float().sqrt()
    rewards = signal * trajectories.states[:, :, 1].flatten(2) @ WEIGHTS
    advantages = torch.zeros(groups, 2, 2)
    advantages[:, :, 0] = rewards - rewards.mean(1, keepdim=True)
    known_mean = policy.transition(denoiser, torch.zeros(1, 2, 1, 1), torch.zeros(1, dtype=torch.long), {}).mean
    (known,) = torch.autograd.grad(signal * (known_mean.flatten() @ WEIGHTS), policy.backbone.network_module.shift)
    algorithm = DDPO(branches=2, advantage_clip=1e9, clip_range=0)
    factors = policy_factors(algorithm, trajectories, advantages, Visits(last_step=False))
    gradients = torch.einsum("bkt,bktd->bd", factors, record(policy, trajectories).projected)
    error = gradients.std(0) / groups**0.5
    assert ((gradients.mean(0) * 4 - known.flatten()).abs() < 4 * 4 * error).all()  # ½, and the mean over 2 elements
    along = direction_signal(gradients @ known.flatten())
    assert along.interval[0] * groups**0.5 > 5
    across = direction_signal(gradients @ torch.stack([-known.flatten()[1], known.flatten()[0]]))
    assert abs(across.value) < 4 * across.error


# -- batches of samples ------------------------------------------------------------------------------------------------


class Mixed(Plane):
    """A plane whose network has a linear layer; `rows` reorders the samples inside the network, and back."""

    def __init__(self, rows: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.network_module = torch.nn.Linear(2, 2)  # type: ignore[assignment]
        self.rows = rows

    def network(self, latents: Tensor, timesteps: Tensor, conditioning: Any) -> Tensor:
        flat = latents.flatten(1).flip(0) if self.rows else latents.flatten(1)
        output = self.network_module(flat)
        return (output.flip(0) if self.rows else output).reshape(latents.shape)


@pytest.mark.parametrize("rows", [False, True])
def test_batches_are_used_where_they_agree_with_single_samples(rows: bool) -> None:
    policy = Policy(Mixed(rows))
    network = policy.backbone.network_module
    trajectories = sample(policy, 3, ["a", "b", "c"])
    denoiser, embeddings = policy.backbone.denoiser(3, 1.0), PromptEmbeddings(policy.backbone)
    found = []
    for batch in (1, 4):
        parameters = list(network.parameters())
        recorder = ScoreRecorder(policy, network, parameters, RandomProjection(6, 16), torch.eye(6)[:2], batch=batch)
        found.append(recorder.record(trajectories, denoiser, embeddings, range(3)))
        assert recorder.batched == (batch == 4 and not rows)
    torch.testing.assert_close(found[0].projected, found[1].projected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found[0].along, found[1].along, rtol=1e-4, atol=1e-6)
