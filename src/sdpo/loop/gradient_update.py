"""Updates by the reward's own gradient: sample, decode and score with a gradient, at the memory of one evaluation.

A gradient that passes several network evaluations is carried back step by step: each evaluation is made again from the
recorded latents, with the gradient that arrives at its outputs. So memory grows neither with the number of steps nor
with the number of trajectories. Source: the adjoint of the sampler's chain, as in any reverse-mode differentiation with
one checkpoint a step.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sdpo.backbones import Conditioning
from sdpo.loop.collectives import Collectives
from sdpo.loop.divergence import FiniteWatch
from sdpo.loop.epoch_row import EpochRewards
from sdpo.loop.optimizer import Optimization
from sdpo.loop.policy import Policy, PromptEmbeddings, to_device
from sdpo.loop.reward_head import Rewarded, RewardHead
from sdpo.loop.rollout import draw_noise
from sdpo.loop.scoring import GatherScores
from sdpo.loop.update_result import Metrics, StepMetrics, UpdateResult, check_update
from sdpo.method import gaussian, seeds
from sdpo.method.algorithms import RewardGradient
from sdpo.method.algorithms.reward_gradient import Term
from sdpo.method.denoisers import Denoiser, Transition
from sdpo.prompts import Prompt


@dataclass(frozen=True)
class GradientSettings:
    """The settings of an epoch's update by reward gradients, on one process.

    Attributes:
        seed: the run's seed.
        batch_size: groups, which are single trajectories here, an optimizer step on this process.
        kl_weight: weight of the divergence of x̂ from the reference model's; 0 switches it off.
        loss_weight: factor of the whole loss, for a run that also makes policy updates.
        skip_nonfinite: count the optimizer steps that were skipped because a value was not finite.
    """

    seed: int
    batch_size: int
    kl_weight: float = 0.0
    loss_weight: float = 1.0
    skip_nonfinite: bool = False


@dataclass(frozen=True)
class GradientOutcome:
    """The outcome of an epoch of reward gradients, on one process.

    Attributes:
        result: the metrics of the update, and its flags.
        rewards: the rewards of the epoch's images.
        queries: number of images, views counted apart, that the rewards scored.
    """

    result: UpdateResult
    rewards: EpochRewards
    queries: int


@dataclass(frozen=True)
class _Batch:
    """The n trajectories of a network call.

    Attributes:
        rows: their places among the B of the epoch.
        texts: their prompts.
        metadata: the further fields of their prompts.
        indices: their global sample indices.
        epoch: the epoch.
        denoiser: their schedule of T steps.
        conditioning: the embeddings of their prompts.
        start: x_0, [n, C, H, W].
        noise: the noise of each step, [T, n, C, H, W].
    """

    rows: slice
    texts: list[str]
    metadata: list[dict[str, object]]
    indices: list[int]
    epoch: int
    denoiser: Denoiser
    conditioning: Conditioning
    start: Tensor
    noise: Tensor

    def step(self, step: int) -> Tensor:
        """The index of a step for each of the n trajectories, int64 [n], on the device."""
        return torch.full((len(self.texts),), step, device=self.start.device)


@dataclass
class _Totals:
    """Sums over one minibatch, and the rewards of the whole epoch.

    Attributes:
        metrics: the metrics of the present minibatch.
        first: mixed rewards of first steps' images.
        last: mixed rewards of last steps' images.
        raw_last: raw scores of last steps' images by reward.
        observed: raw scores of the present minibatch by reward, for the running statistics.
    """

    metrics: Metrics = field(default_factory=dict)
    first: list[Tensor] = field(default_factory=list)
    last: list[Tensor] = field(default_factory=list)
    raw_last: dict[str, list[Tensor]] = field(default_factory=dict)
    observed: dict[str, list[Tensor]] = field(default_factory=dict)

    def add(self, name: str, value: Tensor) -> None:
        """Add to a metric of the minibatch."""
        self.metrics[name] = self.metrics[name] + value if name in self.metrics else value

    def rewarded(self, found: Rewarded, is_first: bool, is_last: bool) -> None:
        """Take in the rewards of n images of one step."""
        for name, values in found.raw.items():
            self.observed.setdefault(name, []).append(values)
            if is_last:
                self.raw_last.setdefault(name, []).append(values)
        if is_first:
            self.first.append(found.mixed)
        if is_last:
            self.last.append(found.mixed)

    def take_observed(self) -> dict[str, Tensor]:
        """The raw scores of the minibatch, [N] by reward, which are forgotten."""
        taken = {name: torch.cat(values) for name, values in self.observed.items()}
        self.observed = {}
        return taken

    def epoch_rewards(self) -> EpochRewards:
        """The rewards of the epoch's first and last images."""
        return EpochRewards(
            first=torch.cat(self.first) if self.first else None,
            last=torch.cat(self.last) if self.last else None,
            raw={name: torch.cat(values).mean() for name, values in self.raw_last.items()},
        )


class GradientUpdate:
    """Samples an epoch's trajectories, climbs the gradient of their rewards, and makes an optimizer step a minibatch.

    Args:
        policy: the policy that is trained.
        algorithm: which images are rewarded, and how far the gradient passes.
        settings: the settings of the update.
        optimization: the optimizer of the policy's trainable parameters.
        head: rewards latents, with gradient.
        schedules: the schedules among which each minibatch draws one, by their number of steps.
        gather: concatenates raw scores over all processes, for the running statistics of several rewards.
    """

    def __init__(
        self,
        policy: Policy,
        algorithm: RewardGradient,
        settings: GradientSettings,
        optimization: Optimization,
        head: RewardHead,
        schedules: Mapping[int, Denoiser],
        gather: GatherScores = lambda scores: scores,
    ) -> None:
        self.policy = policy
        self.algorithm = algorithm
        self.settings = settings
        self.optimization = optimization
        self.head = head
        self.schedules = dict(schedules)
        self._gather = gather

    def run(
        self,
        prompts: Sequence[Prompt],
        indices: Sequence[int],
        embeddings: PromptEmbeddings,
        epoch: int,
        micro_batch: int,
    ) -> GradientOutcome:
        """Make one epoch's optimizer steps.

        Args:
            prompts: the prompts of B trajectories, in the order in which batches take them.
            indices: the global sample indices of the B trajectories.
            embeddings: the embeddings of the prompts.
            epoch: the epoch, from 1.
            micro_batch: trajectories a network call, which affects speed and memory only.

        Raises:
            DivergenceError: if an image is not finite.
            RewardError: if a reward fails.
        """
        queries, totals = self.head.queries, _Totals()
        watch = FiniteWatch([prompt.text for prompt in prompts], "predicted clean latent")
        steps_made = StepMetrics(self.optimization, self.settings.skip_nonfinite)
        for number, start in enumerate(range(0, len(prompts), self.settings.batch_size)):
            generator = seeds.generator(self.settings.seed, epoch, f"gradient update {number}")
            denoiser = self._draw_schedule(generator)
            terms = self.algorithm.terms(denoiser.num_steps, generator)
            stop = start + self.settings.batch_size
            parts = [slice(at, min(at + micro_batch, stop)) for at in range(start, stop, micro_batch)]

            def batches(parts: Sequence[slice] = parts, denoiser: Denoiser = denoiser) -> Iterator[_Batch]:
                for rows in parts:
                    yield self._batch(rows, prompts, indices, embeddings, epoch, denoiser)

            if self.head.mix.lacks_statistics:
                self._observe_first(batches(), terms)
            totals.metrics = {}
            self._add_gradients(batches(), len(parts), terms, watch, totals)
            self.head.mix.observe(self._gather(totals.take_observed()))
            steps_made.add(totals.metrics, self.optimization.step(watch))
        result = UpdateResult(steps_made.means(), watch)
        return GradientOutcome(result, totals.epoch_rewards(), self.head.queries - queries)

    def check(self, result: UpdateResult, epoch: int, processes: Collectives) -> None:
        """Refuse an update whose values are not finite; see `check_update`."""
        check_update(result, self.optimization, self.settings.skip_nonfinite, epoch, processes)

    def _draw_schedule(self, generator: torch.Generator) -> Denoiser:
        """Draw the number of steps of a minibatch."""
        choices = list(self.schedules.values())
        return choices[int(torch.randint(len(choices), (1,), generator=generator))]

    def _batch(
        self,
        rows: slice,
        prompts: Sequence[Prompt],
        indices: Sequence[int],
        embeddings: PromptEmbeddings,
        epoch: int,
        denoiser: Denoiser,
    ) -> _Batch:
        """Draw the noise of some trajectories, which depends on seed, epoch and global sample index alone."""
        texts = [prompt.text for prompt in prompts[rows]]
        keys = [(self.settings.seed, epoch, index) for index in indices[rows]]
        start, noise = draw_noise(self.policy, denoiser, keys)
        return _Batch(
            rows=rows,
            texts=texts,
            metadata=[prompt.metadata for prompt in prompts[rows]],
            indices=list(indices[rows]),
            epoch=epoch,
            denoiser=denoiser,
            conditioning=embeddings.take(embeddings.rows(texts)),
            start=start[:, 0],
            noise=noise,
        )

    def _observe_first(self, batches: Iterable[_Batch], terms: Sequence[Term]) -> None:
        """Score the first minibatch's images without gradient, as several rewards are mixed only once standardised."""
        found: dict[str, list[Tensor]] = {}
        for batch in batches:
            _, clean = self._walk(batch, terms)
            for term in terms:
                for name, values in self.head.scores(clean[term.step], batch.texts, batch.metadata).items():
                    found.setdefault(name, []).append(values)
        self.head.mix.observe(self._gather({name: torch.cat(values) for name, values in found.items()}))

    def _add_gradients(
        self, batches: Iterable[_Batch], count: int, terms: Sequence[Term], watch: FiniteWatch, totals: _Totals
    ) -> None:
        """Add the gradients of a minibatch: the mean over its trajectories of Σ_i w_i r(x̂_i), negated."""
        chains, online = _chains(terms), _climbs_while_sampling(terms)
        backward = _Backward(self.optimization, watch, count * gradient_evaluations(terms).backward)
        for batch in batches:
            share = len(batch.texts) / self.settings.batch_size
            if online:
                self._climb_while_sampling(batch, terms, share, backward, totals)
                continue
            states, clean = self._walk(batch, terms)
            gradients = {term.step: self._reward(batch, term, states, clean, share, totals) for term in terms}
            for chain in chains:
                self._climb_back(batch, chain, states, gradients, backward)

    def _walk(self, batch: _Batch, terms: Sequence[Term]) -> tuple[list[Tensor], dict[int, Tensor]]:
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
        self, batch: _Batch, terms: Sequence[Term], share: float, backward: _Backward, totals: _Totals
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
                backward(batch, step, transition.x0, (gradient * transition.x0).sum())
                self._climb_redraws(batch, term, transition.x0.detach(), share, backward, totals)
            x = gaussian.sample(transition.mean.detach(), transition.std, batch.noise[step])

    def _climb_redraws(
        self, batch: _Batch, term: Term, clean: Tensor, share: float, backward: _Backward, totals: _Totals
    ) -> None:
        """Noise x̂ again to the level of its step, denoise and climb (DRaFT-LV, Clark et al. 2023, section 3)."""
        for redraw in range(term.redraws):
            keys = [(self.settings.seed, batch.epoch, index, f"redraw {redraw}") for index in batch.indices]
            noise = to_device(seeds.normal(tuple(clean.shape[1:]), keys), clean.device)
            x = batch.denoiser.noised(clean, noise, batch.step(term.step))
            base = self._reference(batch, term.step, x)
            again = self._transition(batch, term.step, x).x0
            gradient = self._gradient(batch, term, again.detach(), base, share, totals, view=f"redraw {redraw}")
            backward(batch, term.step, again, (gradient * again).sum())

    def _climb_back(
        self,
        batch: _Batch,
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
            backward(batch, step, transition.x0, product)
            arriving = None if x.grad is None else x.grad / backward.scale

    def _reward(
        self,
        batch: _Batch,
        term: Term,
        states: Sequence[Tensor],
        clean: Mapping[int, Tensor],
        share: float,
        totals: _Totals,
    ) -> Tensor:
        """The gradient of the loss at x̂ of a recorded trajectory, [n, C, H, W]."""
        base = self._reference(batch, term.step, states[term.step])
        return self._gradient(batch, term, clean[term.step], base, share, totals)

    def _gradient(
        self,
        batch: _Batch,
        term: Term,
        clean: Tensor,
        base: Tensor | None,
        share: float,
        totals: _Totals,
        view: str = "view",
    ) -> Tensor:
        """The gradient at x̂ of this term's part of the loss, −w r(x̂) + β w KL, as a mean over the minibatch.

        The divergence is that of two Gaussians of variance 1 around x̂ and the reference model's x̂, as a mean over the
        latent's elements: KL = ½ mean (x̂ − x̂_ref)². It needs no log-probability.

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
        generators = [seeds.generator(self.settings.seed, batch.epoch, index, role) for index in batch.indices]
        found = self.head(clean, batch.texts, batch.metadata, generators, self._head_scale)
        is_last = term.step == batch.denoiser.num_steps - 1
        totals.rewarded(found, term.step == 0 and view == "view", is_last and view == "view")
        weight = self.settings.loss_weight * term.weight / (1 + term.redraws)
        loss, gradient = -found.objective.mean(), -found.gradient
        if base is not None:
            divergence = 0.5 * (clean - base).square().flatten(1).mean(1).mean()
            loss = loss + self.settings.kl_weight * divergence
            gradient = gradient + self.settings.kl_weight * (clean - base) / clean[0].numel()
            totals.add("kl_to_base", share * term.weight / (1 + term.redraws) * divergence)
        totals.add("loss", share * weight * loss)
        return share * weight / len(clean) * gradient

    def _reference(self, batch: _Batch, step: int, latents: Tensor) -> Tensor | None:
        """The reference model's x̂, [n, C, H, W]; None where there is no penalty."""
        if self.settings.kl_weight == 0:
            return None
        with torch.no_grad(), self.policy.backbone.reference():
            return self._transition(batch, step, latents).x0

    def _transition(self, batch: _Batch, step: int, latents: Tensor) -> Transition:
        return self.policy.transition(batch.denoiser, latents, batch.step(step), batch.conditioning)

    @property
    def _head_scale(self) -> float:
        """The factor of objectives in the backward pass of decoder and rewards, for float16."""
        scaler = self.optimization.scaler
        return scaler.get_scale() if scaler.is_enabled() else 1.0


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

    def __call__(self, batch: _Batch, step: int, output: Tensor, product: Tensor) -> None:
        """Run the backward pass of one evaluation.

        Args:
            batch: the n trajectories.
            step: their step.
            output: x̂, with gradient, [n, C, H, W].
            product: ⟨gradient, outputs⟩, a scalar with gradient.
        """
        self._left -= 1
        self._watch.add(batch.rows, torch.full((len(batch.texts),), step), output, product)
        self._optimization.backward(product, self._watch, self._left == 0)


@dataclass(frozen=True)
class TrajectoryCost:
    """The cost of one trajectory of an update.

    Attributes:
        rewarded: images that are rewarded.
        forward: network evaluations without gradient.
        backward: network evaluations with gradient.
    """

    rewarded: int
    forward: int
    backward: int


def gradient_evaluations(terms: Sequence[Term]) -> TrajectoryCost:
    """Count what the terms of an update cost for each trajectory, a penalty on the divergence left out."""
    rewarded, steps = sum(1 + term.redraws for term in terms), max(term.step for term in terms) + 1
    if _climbs_while_sampling(terms):
        return TrajectoryCost(rewarded, steps - len(terms), rewarded)
    return TrajectoryCost(rewarded, steps, sum(map(_length, _chains(terms))))


def _climbs_while_sampling(terms: Iterable[Term]) -> bool:
    """Whether each gradient passes one evaluation, which can be the one that samples."""
    return all(term.through == 1 for term in terms)


def _chains(terms: Iterable[Term]) -> list[list[Term]]:
    """Terms whose gradients end at the same step, which are carried back together."""
    found: dict[int, list[Term]] = {}
    for term in terms:
        found.setdefault(term.first, []).append(term)
    return list(found.values())


def _length(chain: Sequence[Term]) -> int:
    """The network evaluations of a chain."""
    return max(term.step for term in chain) - chain[0].first + 1
