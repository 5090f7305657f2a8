"""Evaluates one step of each group of a minibatch under the current policy, for the algorithm's loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sdpo.loop.policy import Policy, PromptEmbeddings, to_device
from sdpo.loop.shared_first_step import network_rows
from sdpo.method import gaussian
from sdpo.method.denoisers import Denoiser
from sdpo.method.types import StepBatch, Trajectories

KLForm = Literal["transition", "flow_grpo"]


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
    """Evaluates the current policy, and the reference model where it is needed, at steps of sampled trajectories.

    Attributes:
        policy: the policy that is trained.
        kl_form: the scale of the KL divergence: `transition`, the divergence of the step's two Gaussians, or
            `flow_grpo`, that times the step's length Δ.
    """

    policy: Policy
    kl_form: KLForm = "transition"

    def __call__(
        self, epoch: EpochData, rows: slice, step_of_row: Tensor, reference: bool = False, kl: bool = False
    ) -> tuple[StepBatch, Tensor | None]:
        """Evaluate one step of each group, all branches in one network call.

        Args:
            epoch: the epoch's data.
            rows: the n groups among the B.
            step_of_row: the recorded step of each group, int64 [n], on the CPU.
            reference: whether the batch has the reference model's log-probabilities.
            kl: whether the KL divergence from the reference model is wanted.

        Returns:
            The batch that the loss takes, and the mean KL divergence from the reference model, a scalar; None in its
            place where the divergence is not wanted.
        """
        data = epoch.trajectories
        device, branches = data.states.device, data.log_prob.shape[1]
        group, branch, place = network_rows(step_of_row, branches, data.shared_first_step)
        on_schedule = data.schedule_steps(rows, step_of_row)
        group, branch, steps, recorded = (to_device(t, device) for t in (group, branch, on_schedule, step_of_row))
        states, each = data.states[rows], torch.arange(len(step_of_row), device=device)
        x, own = states[group, branch, recorded[group]], steps[group]
        conditioning = epoch.embeddings.take(epoch.prompt_rows[rows][group])
        base: Tensor | None = None
        # The reference comes first: a sharded network's weights, written over and back, are gathered in order only in
        # a forward pass.
        if kl or reference:
            with torch.no_grad(), self.policy.backbone.reference():
                base = self.policy.transition(epoch.denoiser, x, own, conditioning).mean
        transition = self.policy.transition(epoch.denoiser, x, own, conditioning)
        mean, std = transition.mean, transition.std
        if place is not None:
            place = to_device(place, device)
            mean, std, base = mean[place], std[place], None if base is None else base[place]
        following = states[each, :, recorded + 1].flatten(0, 1)

        def log_prob(of: Tensor) -> Tensor:
            return gaussian.log_prob(following, of, std).unflatten(0, (-1, branches))

        batch = StepBatch(
            log_prob=log_prob(mean),
            old_log_prob=data.log_prob[rows][each, :, recorded],
            advantage=epoch.advantages[rows][each, :, recorded],
            step_index=steps,
            mask=data.stochastic[steps].float(),
            reference_log_prob=log_prob(base) if base is not None and reference else None,
        )
        if base is None or not kl:
            return batch, None
        return batch, self._divergence(epoch.denoiser, mean, base, std, steps.repeat_interleave(branches))

    def _divergence(self, denoiser: Denoiser, mean: Tensor, base: Tensor, std: Tensor, steps: Tensor) -> Tensor:
        """The mean KL divergence in the form that the run asks for, a scalar."""
        divergence = gaussian.kl_divergence(mean, base, std)
        if self.kl_form == "flow_grpo":
            # Their divisor is 2 s(σ)², where the step's variance is s(σ)² Δ.
            assert denoiser.step_length is not None, "a run is refused that has none"
            divergence = divergence * denoiser.step_length[steps]
        return divergence.mean()
