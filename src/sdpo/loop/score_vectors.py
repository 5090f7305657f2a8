"""The score ∇ log p of every step of sampled trajectories, projected: all linear estimators follow from these."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from sdpo.errors import DivergenceError
from sdpo.loop.policy import Policy, PromptEmbeddings
from sdpo.loop.step_batch import EpochData, StepEvaluator
from sdpo.method.denoisers import Denoiser
from sdpo.method.projection import RandomProjection
from sdpo.method.types import Trajectories


@dataclass(frozen=True)
class ScoreVectors:
    """The scores of B groups of K trajectories; 0 at steps that were left out.

    Attributes:
        projected: S ∇ℓ, the scores after a random projection, float32 [B, K, T, D], on the CPU.
        along: ⟨∇ℓ, u⟩ for each of N known directions, without a projection, float64 [B, K, T, N], on the CPU.
        reference_log_prob: the log-probabilities under the reference model, float32 [B, K, T], on the CPU; None where
            they were not asked for.
    """

    projected: Tensor
    along: Tensor
    reference_log_prob: Tensor | None


@dataclass(frozen=True)
class ScoreRecorder:
    """Computes scores one branch and step at a time, with one backward pass each.

    Attributes:
        policy: the policy that sampled, with the weights that it sampled with.
        parameters: the trained parameters, P numbers in all.
        projection: the random projection of vectors of P numbers.
        directions: N known directions, float32 [N, P], on the device.
        loss_scale: the factor of the backward pass: float16 gradients underflow without one.
    """

    policy: Policy
    parameters: Sequence[nn.Parameter]
    projection: RandomProjection
    directions: Tensor
    loss_scale: float = 1.0

    def record(
        self,
        trajectories: Trajectories,
        denoiser: Denoiser,
        embeddings: PromptEmbeddings,
        steps: Iterable[int],
        *,
        reference: bool = False,
        advance: Callable[[int], None] = lambda count: None,
    ) -> ScoreVectors:
        """Compute the scores of all branches at some steps.

        Args:
            trajectories: B groups of K trajectories.
            denoiser: the schedule that they were sampled on.
            embeddings: the embeddings of their prompts.
            steps: the steps whose scores are computed; they must be stochastic.
            reference: whether the reference model's log-probabilities are wanted.
            advance: called with the number of network evaluations with gradient that have been made since its last
                call.

        Raises:
            DivergenceError: if a score is not finite.
        """
        groups, branches, num_steps = trajectories.log_prob.shape
        single = _as_single_branches(trajectories)
        rows = embeddings.rows(single.prompts)
        data = EpochData(single, torch.zeros_like(single.log_prob), denoiser, embeddings, rows)
        evaluate = StepEvaluator(self.policy)
        projected = torch.zeros(groups * branches, num_steps, self.projection.dimension)
        along = torch.zeros(groups * branches, num_steps, len(self.directions), dtype=torch.float64)
        base = single.log_prob[:, 0].cpu().clone()
        for row in range(groups * branches):
            for step in steps:
                at = slice(row, row + 1)
                batch, _ = evaluate(data, at, torch.tensor([step]), reference=reference)
                gradients = self._gradients(batch.log_prob.sum(), step, single.prompts[row])
                projected[row, step] = self.projection(gradients)
                along[row, step] = self._along(gradients)
                if batch.reference_log_prob is not None:
                    base[row, step] = batch.reference_log_prob.detach()
                advance(1)
        shape = (groups, branches)
        return ScoreVectors(
            projected.unflatten(0, shape), along.unflatten(0, shape), base.unflatten(0, shape) if reference else None
        )

    def _gradients(self, log_prob: Tensor, step: int, prompt: str) -> list[Tensor]:
        """The gradient of one log-probability at every parameter."""
        found = torch.autograd.grad(self.loss_scale * log_prob, self.parameters, allow_unused=True)
        gradients = [
            torch.zeros_like(parameter) if gradient is None else gradient / self.loss_scale
            for gradient, parameter in zip(found, self.parameters, strict=True)
        ]
        if not torch.stack(torch._foreach_norm(gradients)).isfinite().all():
            raise DivergenceError(
                f"the gradient of the log-probability of step {step} for prompt {prompt!r} is not finite: use a wider "
                "model.dtype"
            )
        return gradients

    def _along(self, gradients: Sequence[Tensor]) -> Tensor:
        """The inner products with the known directions, float64 [N], on the CPU."""
        flat = torch.cat([gradient.reshape(-1).float() for gradient in gradients])
        return (self.directions @ flat).double().cpu()


def _as_single_branches(trajectories: Trajectories) -> Trajectories:
    """The trajectories as groups of one, so that a network call sees one branch."""
    branches = trajectories.log_prob.shape[1]
    return replace(
        trajectories,
        prompts=[prompt for prompt in trajectories.prompts for _ in range(branches)],
        metadata=[fields for fields in trajectories.metadata for _ in range(branches)],
        sample_index=trajectories.sample_index.repeat_interleave(branches),
        states=trajectories.states.flatten(0, 1)[:, None],
        log_prob=trajectories.log_prob.flatten(0, 1)[:, None],
        x0=None,
        shared_first_step=False,
    )
