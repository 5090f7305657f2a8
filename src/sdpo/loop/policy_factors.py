"""The weight of every step's score in an algorithm's policy gradient, at the policy that sampled."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sdpo.loop.visits import Visits
from sdpo.method.algorithms import Algorithm
from sdpo.method.types import StepBatch, Trajectories, TrajectoryBatch


def policy_factors(
    algorithm: Algorithm[Any],
    trajectories: Trajectories,
    advantages: Tensor,
    visits: Visits,
    reference_log_prob: Tensor | None = None,
) -> Tensor:
    """Compute f_{bki} with which group b's ascent direction is Σ_{k,i} f_{bki} ∇ℓ_{bki}.

    By the chain rule f = −∂loss/∂ℓ at ℓ(θ) = ℓ(old), of the algorithm's own loss, so that its pairs, weights and
    clipped advantages are those of training. The scale is that of one group's loss, summed over the visited steps.

    Args:
        algorithm: the objective.
        trajectories: B groups of K trajectories.
        advantages: the advantages of all steps, float32 [B, K, T].
        visits: which steps the update visits; those that it visits at random all count.
        reference_log_prob: the log-probabilities under the reference model, [B, K, T]; None where it needs none.

    Returns:
        float32 [B, K, T]; 0 at steps that are not visited or have no density.
    """
    old, stochastic = trajectories.log_prob, trajectories.stochastic.float()
    groups, visited = len(old), visits.eligible(trajectories.num_steps)
    log_prob = old.detach().clone().requires_grad_()
    if algorithm.takes_trajectories:
        mask = stochastic.clone()
        mask[visited:] = 0
        batch = TrajectoryBatch(log_prob, old, advantages[:, :, 0], mask, reference_log_prob)
        loss = algorithm.loss(batch).loss
    else:
        losses = []
        for step in range(visited):
            index = torch.full((groups,), step, device=old.device)
            reference = None if reference_log_prob is None else reference_log_prob[:, :, step]
            at = (log_prob[:, :, step], old[:, :, step], advantages[:, :, step], index, stochastic[index], reference)
            losses.append(algorithm.loss(StepBatch(*at)).loss)
        loss = torch.stack(losses).sum()
    (gradient,) = torch.autograd.grad(loss, log_prob)
    return -groups * gradient
