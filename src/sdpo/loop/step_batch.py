"""Evaluates one step of each group of a minibatch under the current policy, for the algorithm's loss."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sdpo.loop.policy import Policy, PromptEmbeddings, to_device
from sdpo.loop.shared_first_step import network_rows
from sdpo.method import gaussian
from sdpo.method.denoisers import Denoiser
from sdpo.method.types import StepBatch, Trajectories


@dataclass(frozen=True)
class EpochData:
    """The data from which every minibatch of an epoch is taken.

    Attributes:
        trajectories: B groups, in the order in which batches take them.
        advantages: the advantages of all steps, float32 [B, K, T].
        denoiser: the schedule that the trajectories were sampled on.
        embeddings: the embeddings of the prompts.
        prompt_rows: the places of the B prompts among the embeddings, int64 [B].
    """

    trajectories: Trajectories
    advantages: Tensor
    denoiser: Denoiser
    embeddings: PromptEmbeddings
    prompt_rows: Tensor


@dataclass(frozen=True)
class StepEvaluator:
    """Evaluates the current policy, and the base model where it is needed, at steps of sampled trajectories.

    Attributes:
        policy: the policy that is trained.
        needs_reference: whether the loss takes the base model's log-probabilities.
        needs_kl: whether the KL divergence from the base model is wanted.
    """

    policy: Policy
    needs_reference: bool
    needs_kl: bool

    def __call__(self, epoch: EpochData, rows: slice, step_of_row: Tensor) -> tuple[StepBatch, Tensor | None]:
        """Evaluate one step of each group, all branches in one network call.

        Args:
            epoch: the epoch's data.
            rows: the n groups among the B.
            step_of_row: the step of each group, int64 [n], on the CPU.

        Returns:
            The batch that the loss takes, and the mean KL divergence from the base model, a scalar; None in its place
            where the divergence is not wanted or no gradient is recorded.
        """
        data = epoch.trajectories
        device, branches = data.states.device, data.log_prob.shape[1]
        group, branch, place = network_rows(step_of_row, branches, data.shared_first_step)
        group, branch, steps = (to_device(t, device) for t in (group, branch, step_of_row))
        states, each = data.states[rows], torch.arange(len(step_of_row), device=device)
        x, own = states[group, branch, steps[group]], steps[group]
        conditioning = epoch.embeddings.take(epoch.prompt_rows[rows][group])
        base: Tensor | None = None
        # The base model comes first: a sharded network's weights, written over and back, are gathered in order only in
        # a forward pass. A pass without gradients serves log-probabilities alone, which need no base model.
        if (self.needs_kl or self.needs_reference) and torch.is_grad_enabled():
            with torch.no_grad(), self.policy.backbone.reference():
                base = self.policy.transition(epoch.denoiser, x, own, conditioning).mean
        transition = self.policy.transition(epoch.denoiser, x, own, conditioning)
        mean, std = transition.mean, transition.std
        if place is not None:
            place = to_device(place, device)
            mean, std, base = mean[place], std[place], None if base is None else base[place]
        following = states[each, :, steps + 1].flatten(0, 1)

        def log_prob(of: Tensor) -> Tensor:
            return gaussian.log_prob(following, of, std).unflatten(0, (-1, branches))

        batch = StepBatch(
            log_prob=log_prob(mean),
            old_log_prob=data.log_prob[rows][each, :, steps],
            advantage=epoch.advantages[rows][each, :, steps],
            step_index=steps,
            mask=data.stochastic[steps].float(),
            reference_log_prob=log_prob(base) if base is not None and self.needs_reference else None,
        )
        if base is None or not self.needs_kl:
            return batch, None
        return batch, gaussian.kl_divergence(mean, base, std).mean()
