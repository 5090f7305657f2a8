"""The gradient of rewards at the weights: through decoder, rewards and network, at the memory of one evaluation.

A gradient that passes several network evaluations is carried back step by step: each evaluation is made again from the
recorded latents, with the gradient that arrives at its outputs. So memory grows neither with the number of steps nor
with the number of trajectories. This is reverse-mode differentiation of the sampler's chain with one checkpoint a step.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from sdpo.loop.divergence import FiniteWatch
from sdpo.loop.gradient_cost import chains_of, climbs_while_sampling, gradient_evaluations
from sdpo.loop.gradient_records import GradientSettings, GradientTotals, TrajectoryStarts
from sdpo.loop.optimizer import Optimization
from sdpo.loop.policy import Policy, to_device
from sdpo.loop.reward_head import RewardHead
from sdpo.method import gaussian, seeds
from sdpo.method.algorithms.reward_gradient import Term
from sdpo.method.denoisers import Transition


class RewardClimber:
    """Samples trajectories, and adds the gradients of their rewards to the weights.

    Args:
        policy: the policy that is trained.
        settings: the settings of the update.
        optimization: the optimizer, which receives the gradients.
        head: rewards latents, with gradient.
    """

    def __init__(
        self, policy: Policy, settings: GradientSettings, optimization: Optimization, head: RewardHead
    ) -> None:
        self._policy = policy
        self._settings = settings
        self._optimization = optimization
        self._head = head

    def climb(
        self,
        batches: Iterable[TrajectoryStarts],
        count: int,
        terms: Sequence[Term],
        watch: FiniteWatch,
        totals: GradientTotals,
    ) -> None:
        """Add the gradients of a minibatch: the mean over its trajectories of Σ_i w_i r(x̂_i), negated.

        Args:
            batches: the trajectories of the minibatch, a network call's at a time.
            count: the number of these batches.
            terms: the rewarded images.
            watch: receives the predicted clean latents.
            totals: receives rewards and metrics.
        """
        chains, online = chains_of(terms), climbs_while_sampling(terms)
        backward = _Backward(self._optimization, watch, count * gradient_evaluations(terms).backward)
        for batch in batches:
            share = len(batch.texts) / self._settings.batch_size
            if online:
                self._climb_while_sampling(batch, terms, share, backward, totals)
                continue
            states, clean = self.walk(batch, terms)
            gradients = {term.step: self._reward(batch, term, states, clean, share, totals) for term in terms}
            for chain in chains:
                self._climb_back(batch, chain, states, gradients, backward)

    def walk(self, batch: TrajectoryStarts, terms: Sequence[Term]) -> tuple[list[Tensor], dict[int, Tensor]]:
        """Sample without gradient up to the last rewarded step; returns x_0, x_1 … and the rewarded x̂ by step."""
        states, clean, wanted = [batch.start], dict[int, Tensor](), {term.step for term in terms}
        for step in range(max(wanted) + 1):
            with torch.no_grad():
                transition = self._transition(batch, step, states[-1])
                states.append(gaussian.sample(transition.mean, transition.std, batch.noise[step]))
            if step in wanted:
                clean[step] = transition.x0
        return states, clean

    def _climb_while_sampling(
        self, batch: TrajectoryStarts, terms: Sequence[Term], share: float, backward: _Backward, totals: GradientTotals
    ) -> None:
        """Add the gradients of terms that pass one evaluation each: the evaluation that samples is the one that learns.

        The latents of each step are constants for the gradient.
        """
        by_step, x = {term.step: term for term in terms}, batch.start
        for step in range(max(by_step) + 1):
            term = by_step.get(step)
            if term is None:
                with torch.no_grad():
                    transition = self._transition(batch, step, x)
            else:
                base = self._reference(batch, step, x)
                transition = self._transition(batch, step, x)
                gradient = self._gradient(batch, term, transition.x0.detach(), base, share, totals)
                backward(batch, step, transition.x0, (gradient * transition.x0).sum(), gradient)
                self._climb_redraws(batch, term, transition.x0.detach(), share, backward, totals)
            x = gaussian.sample(transition.mean.detach(), transition.std, batch.noise[step])

    def _climb_redraws(
        self,
        batch: TrajectoryStarts,
        term: Term,
        clean: Tensor,
        share: float,
        backward: _Backward,
        totals: GradientTotals,
    ) -> None:
        """Noise x̂ again to the level of its step, denoise and climb (DRaFT-LV, Clark et al. 2023, section 3)."""
        for redraw in range(term.redraws):
            keys = [(self._settings.seed, batch.epoch, index, f"redraw {redraw}") for index in batch.indices]
            noise = to_device(seeds.normal(tuple(clean.shape[1:]), keys), clean.device)
            x = batch.denoiser.noised(clean, noise, batch.step(term.step))
            base = self._reference(batch, term.step, x)
            again = self._transition(batch, term.step, x).x0
            gradient = self._gradient(batch, term, again.detach(), base, share, totals, view=f"redraw {redraw}")
            backward(batch, term.step, again, (gradient * again).sum(), gradient)

    def _climb_back(
        self,
        batch: TrajectoryStarts,
        chain: Sequence[Term],
        states: Sequence[Tensor],
        gradients: Mapping[int, Tensor],
        backward: _Backward,
    ) -> None:
        """Carry the gradients of terms that end at one step back through the evaluations before them.

        Evaluation i has two outputs, x̂_i and, by the drawn noise, x_{i+1}. The gradients that arrive at them give the
        gradient of its weights and that at x_i, which arrives at the evaluation before.
        """
        first, own = chain[0].first, {term.step for term in chain}
        arriving: Tensor | None = None
        for step in range(max(own), first - 1, -1):
            x = states[step].detach().requires_grad_(step > first)
            transition = self._transition(batch, step, x)
            product = torch.zeros((), device=x.device)
            if step in own:
                product = product + (gradients[step] * transition.x0).sum()
            if arriving is not None:
                following = gaussian.sample(transition.mean, transition.std, batch.noise[step])
                product = product + (arriving * following).sum()
            backward(batch, step, transition.x0, product, gradients.get(step) if step in own else None)
            arriving = None if x.grad is None else x.grad / backward.scale

    def _reward(
        self,
        batch: TrajectoryStarts,
        term: Term,
        states: Sequence[Tensor],
        clean: Mapping[int, Tensor],
        share: float,
        totals: GradientTotals,
    ) -> Tensor:
        """The gradient of the loss at x̂ of a recorded trajectory, [n, C, H, W]."""
        base = self._reference(batch, term.step, states[term.step])
        return self._gradient(batch, term, clean[term.step], base, share, totals)

    def _gradient(
        self,
        batch: TrajectoryStarts,
        term: Term,
        clean: Tensor,
        base: Tensor | None,
        share: float,
        totals: GradientTotals,
        view: str = "view",
    ) -> Tensor:
        """The gradient at x̂ of this term's part of the loss, −w r(x̂) + β w KL, as a mean over the minibatch.

        The divergence is that of two Gaussians of variance 1 around x̂ and the reference model's x̂, as a mean over the
        latent's elements: KL = ½ mean (x̂ − x̂_ref)². It needs no log-probability. x̂_ref is a constant target: where the
        gradient passes several evaluations, it moves x̂, and not the latents at which the reference model is evaluated.

        Args:
            batch: the n trajectories.
            term: the term.
            clean: x̂, float32 [n, C, H, W].
            base: the reference model's x̂ from the same latents; None where there is no penalty.
            share: the share of the n trajectories in the minibatch.
            totals: receives rewards and metrics.
            view: the role of the random views of these images, by which their random numbers differ.
        """
        role = f"{view} of step {term.step}"
        generators = [seeds.generator(self._settings.seed, batch.epoch, index, role) for index in batch.indices]
        found = self._head(clean, batch.texts, batch.metadata, generators)
        is_last = term.step == batch.denoiser.num_steps - 1
        totals.rewarded(found, term.step == 0 and view == "view", is_last and view == "view")
        weight = self._settings.loss_weight * term.weight / (1 + term.redraws)
        loss, gradient = -found.objective.mean(), -found.gradient
        if base is not None:
            divergence = 0.5 * (clean - base).square().flatten(1).mean(1).mean()
            loss = loss + self._settings.kl_weight * divergence
            gradient = gradient + self._settings.kl_weight * (clean - base) / clean[0].numel()
            totals.add("kl_to_base", share * term.weight / (1 + term.redraws) * divergence)
        totals.add("loss", share * weight * loss)
        return share * weight / len(clean) * gradient

    def _reference(self, batch: TrajectoryStarts, step: int, latents: Tensor) -> Tensor | None:
        """The reference model's x̂, [n, C, H, W]; None where there is no penalty."""
        if self._settings.kl_weight == 0:
            return None
        with torch.no_grad(), self._policy.backbone.reference():
            return self._transition(batch, step, latents).x0

    def _transition(self, batch: TrajectoryStarts, step: int, latents: Tensor) -> Transition:
        return self._policy.transition(batch.denoiser, latents, batch.step(step), batch.conditioning)


class _Backward:
    """Adds the gradients of products ⟨gradient, output⟩, and knows which of a minibatch is the last.

    Args:
        optimization: the optimizer.
        watch: receives the outputs.
        count: the number of calls in the minibatch.

    Attributes:
        scale: the factor that the loss scaler puts on gradients at the latents.
    """

    def __init__(self, optimization: Optimization, watch: FiniteWatch, count: int) -> None:
        self._optimization = optimization
        self._watch = watch
        self._left = count
        self.scale = optimization.scaler.get_scale() if optimization.scaler.is_enabled() else 1.0

    def __call__(
        self, batch: TrajectoryStarts, step: int, output: Tensor, product: Tensor, gradient: Tensor | None
    ) -> None:
        """Run the backward pass of one evaluation.

        Args:
            batch: the n trajectories.
            step: their step.
            output: x̂, with gradient, [n, C, H, W].
            product: ⟨gradient, outputs⟩, a scalar with gradient.
            gradient: the gradient that decoder and rewards gave at x̂; None where this step's image is not rewarded.
                It must be finite; one that arrives from later steps may overflow under the loss scaler without harm.
        """
        self._left -= 1
        watched = output if gradient is None else torch.cat([output.flatten(1), gradient.flatten(1)], dim=1)
        self._watch.add(batch.rows, torch.full((len(batch.texts),), step), watched, output.new_zeros(()))
        self._optimization.backward(product, self._watch, self._left == 0)
