"""The score ∇ log p of every step of sampled trajectories, projected: all linear estimators follow from these."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from sdpo.errors import DivergenceError
from sdpo.loop.policy import Policy, PromptEmbeddings
from sdpo.loop.sample_gradients import LayerCalls
from sdpo.loop.step_batch import EpochData, StepEvaluator
from sdpo.method.denoisers import Denoiser
from sdpo.method.projection import RandomProjection
from sdpo.method.types import StepBatch, Trajectories

_NUMBERS = 2**26  # gradient elements that are held at once: 256 MiB
_ROUNDING = 0.02  # relative: half precision rounds inputs and gradients of layers to three digits


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


class ScoreRecorder:
    """Computes the score of every branch and step, some samples in a network call.

    Where the trained parameters are those of linear and convolutional layers, one backward pass gives the scores of all
    samples of a call. The first call is made one by one too: where the two disagree, as in a network that mixes its
    samples' rows, all further ones are made one by one.

    Args:
        policy: the policy that sampled, with the weights that it sampled with.
        network: the module that owns the parameters.
        parameters: the trained parameters, P numbers in all.
        projection: the random projection of vectors of P numbers.
        directions: N known directions, float32 [N, P], on the device.
        batch: samples a network call.
        loss_scale: the factor of the backward pass: float16 gradients underflow without one.

    Attributes:
        batched: whether scores are computed in batches.
    """

    def __init__(
        self,
        policy: Policy,
        network: nn.Module,
        parameters: Sequence[nn.Parameter],
        projection: RandomProjection,
        directions: Tensor,
        *,
        batch: int = 1,
        loss_scale: float = 1.0,
    ) -> None:
        self._policy = policy
        self._parameters = list(parameters)
        self._projection = projection
        self._directions = directions
        self._loss_scale = loss_scale
        self._calls = LayerCalls(network, parameters)
        size = sum(parameter.numel() for parameter in parameters)
        self._batch = max(1, min(batch, _NUMBERS // size))
        self._verified = False
        self.batched = self._calls.possible and self._batch > 1

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
            advance: called with the number of scores that have been computed since its last call.

        Raises:
            DivergenceError: if a score is not finite.
        """
        groups, branches, num_steps = trajectories.log_prob.shape
        single = _as_single_branches(trajectories)
        rows = embeddings.rows(single.prompts)
        data = EpochData(single, torch.zeros_like(single.log_prob), denoiser, embeddings, rows)
        count = groups * branches
        projected = torch.zeros(count, num_steps, self._projection.dimension)
        along = torch.zeros(count, num_steps, len(self._directions), dtype=torch.float64)
        base = single.log_prob[:, 0].cpu().clone()
        for step in steps:
            for start in range(0, count, self._batch):
                at = slice(start, min(start + self._batch, count))
                gradients, reference_log_prob = self._scores(data, at, step, reference)
                projected[at, step] = self._projection(gradients)
                along[at, step] = (gradients @ self._directions.T).double().cpu()
                if reference_log_prob is not None:
                    base[at, step] = reference_log_prob.cpu()
                advance(at.stop - at.start)
        shape = (groups, branches)
        return ScoreVectors(
            projected.unflatten(0, shape), along.unflatten(0, shape), base.unflatten(0, shape) if reference else None
        )

    def _scores(self, data: EpochData, at: slice, step: int, reference: bool) -> tuple[Tensor, Tensor | None]:
        """The scores of n samples at a step, float32 [n, P], and the reference model's log-probabilities, [n]."""
        found = self._together(data, at, step, reference) if self.batched else None
        if found is None or not self._verified:
            alone = self._one_by_one(data, at, step, reference)
            self.batched = self.batched and found is not None and _agree(found[0], alone[0])
            self._verified = True
            found = alone
        if not (finite := found[0].isfinite().all(1)).all():
            prompt = data.trajectories.prompts[at.start + int(finite.logical_not().nonzero()[0, 0])]
            raise DivergenceError(
                f"the gradient of the log-probability of step {step} for prompt {prompt!r} is not finite: use a wider "
                "model.dtype"
            )
        return found

    def _together(self, data: EpochData, at: slice, step: int, reference: bool) -> tuple[Tensor, Tensor | None] | None:
        """The scores of n samples from one backward pass; None where the network's rows are not those of samples."""
        with self._calls.recorded():
            batch = self._evaluate(data, at, step)
            gradients = self._calls.gradients(batch.log_prob[:, 0], self._loss_scale)
        if gradients is None:
            return None
        flat = torch.cat([gradient.flatten(1) for gradient in gradients], dim=1)
        return flat, self._reference(data, at, step) if reference else None

    def _one_by_one(self, data: EpochData, at: slice, step: int, reference: bool) -> tuple[Tensor, Tensor | None]:
        """The scores of n samples from a backward pass each."""
        rows = []
        for row in range(at.start, at.stop):
            batch = self._evaluate(data, slice(row, row + 1), step)
            scaled = self._loss_scale * batch.log_prob.sum()
            found = torch.autograd.grad(scaled, self._parameters, allow_unused=True)
            gradients = [
                torch.zeros_like(parameter) if gradient is None else gradient
                for gradient, parameter in zip(found, self._parameters, strict=True)
            ]
            rows.append(torch.cat([gradient.reshape(-1).float() for gradient in gradients]) / self._loss_scale)
        return torch.stack(rows), self._reference(data, at, step) if reference else None

    def _evaluate(self, data: EpochData, at: slice, step: int) -> StepBatch:
        """The log-probabilities of n samples at a step, with gradient, [n, 1]."""
        batch, _ = StepEvaluator(self._policy)(data, at, torch.full((at.stop - at.start,), step))
        return batch

    @torch.no_grad()
    def _reference(self, data: EpochData, at: slice, step: int) -> Tensor:
        """The reference model's log-probabilities of n samples at a step, [n]."""
        steps = torch.full((at.stop - at.start,), step)
        batch, _ = StepEvaluator(self._policy)(data, at, steps, reference=True)
        assert batch.reference_log_prob is not None, "asked for"
        return batch.reference_log_prob[:, 0]


def _agree(batched: Tensor, single: Tensor) -> bool:
    """Whether two ways to compute the scores of n samples, [n, P], differ by rounding alone."""
    distance = torch.linalg.vector_norm(batched - single, dim=1)
    return bool((distance <= _ROUNDING * torch.linalg.vector_norm(single, dim=1)).all())


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
