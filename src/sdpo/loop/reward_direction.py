"""The gradient of the mean reward at fixed weights, by backpropagation through sampler, decoder and rewards."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sdpo.errors import DivergenceError
from sdpo.loop.divergence import FiniteWatch
from sdpo.loop.gradient_records import GradientSettings, GradientTotals, TrajectoryStarts
from sdpo.loop.optimizer import Optimization
from sdpo.loop.policy import Policy, PromptEmbeddings
from sdpo.loop.reward_climber import RewardClimber
from sdpo.loop.reward_head import RewardHead
from sdpo.loop.rollout import draw_noise
from sdpo.method.algorithms.reward_gradient import Term
from sdpo.method.denoisers import Denoiser
from sdpo.prompts import Prompt


@dataclass(frozen=True)
class RewardDirection:
    """Computes the pathwise gradient of the last image's reward, averaged over single trajectories.

    Attributes:
        policy: the policy, at the weights at which the gradient is wanted.
        optimization: holds the trained parameters and the loss scaler; it makes no step.
        head: rewards latents, with gradient.
        embeddings: the embeddings of the prompts.
        seed: the run's seed.
        micro_batch: trajectories a network call.
    """

    policy: Policy
    optimization: Optimization
    head: RewardHead
    embeddings: PromptEmbeddings
    seed: int
    micro_batch: int

    def __call__(
        self,
        denoiser: Denoiser,
        prompts: Sequence[Prompt],
        indices: Sequence[int],
        epoch: int,
        parameters: Sequence[nn.Parameter],
        advance: Callable[[int], None] = lambda count: None,
    ) -> Tensor:
        """Estimate ∇_θ E r(x̂_{n−1}) of n-step samples, from M trajectories through all of their n evaluations.

        Args:
            denoiser: the schedule of n steps.
            prompts: M prompts.
            indices: M numbers, on which and on the epoch the trajectories' noise depends.
            epoch: the epoch.
            parameters: the trained parameters at which the gradient is wanted.
            advance: called with the number of trajectories that have been sampled since its last call.

        Returns:
            float32 [P], on the device.

        Raises:
            DivergenceError: if an image, a predicted clean latent or a gradient is not finite.
            RewardError: if a reward fails.
        """
        term = Term(denoiser.num_steps - 1, 1.0, denoiser.num_steps)
        climber = RewardClimber(self.policy, GradientSettings(self.seed, len(prompts)), self.optimization, self.head)
        starts = range(0, len(prompts), self.micro_batch)

        def batches() -> Iterator[TrajectoryStarts]:
            for start in starts:
                rows = slice(start, min(start + self.micro_batch, len(prompts)))
                yield self._batch(denoiser, rows, prompts, indices, epoch)
                advance(rows.stop - rows.start)

        watch = FiniteWatch([prompt.text for prompt in prompts], quantity="predicted clean latent")
        try:
            with self.head.mix.resident():
                climber.climb(batches(), len(starts), [term], watch, GradientTotals())
            scaler = self.optimization.scaler
            scale = scaler.get_scale() if scaler.is_enabled() else 1.0
            found = [torch.zeros_like(p) if p.grad is None else -p.grad / scale for p in parameters]
        finally:
            self.optimization.optimizer.zero_grad(set_to_none=True)
        flat = torch.cat([gradient.reshape(-1).float() for gradient in found])
        if (first := watch.first()) is not None or not flat.isfinite().all():
            what = "the gradient of the reward at the weights" if first is None else first.what
            raise DivergenceError(f"{what} is not finite: use a wider model.dtype")
        return flat

    def _batch(
        self, denoiser: Denoiser, rows: slice, prompts: Sequence[Prompt], indices: Sequence[int], epoch: int
    ) -> TrajectoryStarts:
        """Draw the noise of some trajectories."""
        texts = [prompt.text for prompt in prompts[rows]]
        start, noise = draw_noise(self.policy, denoiser, [(self.seed, epoch, index) for index in indices[rows]])
        return TrajectoryStarts(
            rows=rows,
            texts=texts,
            metadata=[prompt.metadata for prompt in prompts[rows]],
            indices=list(indices[rows]),
            epoch=epoch,
            denoiser=denoiser,
            conditioning=self.embeddings.take(self.embeddings.rows(texts)),
            start=start[:, 0],
            noise=noise,
        )
