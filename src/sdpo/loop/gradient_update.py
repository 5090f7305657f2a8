"""Updates by the reward's own gradient: sample, decode and score with a gradient, an optimizer step a minibatch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sdpo.errors import UserError
from sdpo.loop.collectives import Collectives
from sdpo.loop.divergence import FiniteWatch
from sdpo.loop.epoch_row import EpochRewards
from sdpo.loop.gradient_records import GradientSettings, GradientTotals, TrajectoryStarts
from sdpo.loop.optimizer import Optimization
from sdpo.loop.policy import Policy, PromptEmbeddings
from sdpo.loop.reward_climber import RewardClimber
from sdpo.loop.reward_head import RewardHead
from sdpo.loop.rollout import draw_noise
from sdpo.loop.scoring import GatherScores
from sdpo.loop.update_result import StepMetrics, UpdateResult, check_update
from sdpo.method import seeds
from sdpo.method.algorithms import RewardGradient
from sdpo.method.algorithms.reward_gradient import Term, check_terms
from sdpo.method.denoisers import Denoiser
from sdpo.prompts import Prompt


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
        self._climber = RewardClimber(policy, settings, optimization, head)

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
        queries, totals = self.head.queries, GradientTotals()
        watch = FiniteWatch(
            [prompt.text for prompt in prompts], "predicted clean latent, or the reward's gradient at it,"
        )
        steps_made = StepMetrics(self.optimization, self.settings.skip_nonfinite)
        for number, start in enumerate(range(0, len(prompts), self.settings.batch_size)):
            generator = seeds.generator(self.settings.seed, epoch, f"gradient update {number}")
            denoiser = self._draw_schedule(generator)
            chosen = self.algorithm.terms(denoiser.num_steps, generator)
            terms = check_terms(self.algorithm, chosen, denoiser.num_steps)
            stop = start + self.settings.batch_size
            parts = [slice(at, min(at + micro_batch, stop)) for at in range(start, stop, micro_batch)]

            def batches(parts: Sequence[slice] = parts, denoiser: Denoiser = denoiser) -> Iterator[TrajectoryStarts]:
                for rows in parts:
                    yield self._batch(rows, prompts, indices, embeddings, epoch, denoiser)

            if self.head.mix.lacks_statistics:
                self._observe_first(batches(), terms)
            totals.metrics = {}
            self._climber.climb(batches(), len(parts), terms, watch, totals)
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
    ) -> TrajectoryStarts:
        """Draw the noise of some trajectories, which depends on seed, epoch and global sample index alone."""
        texts = [prompt.text for prompt in prompts[rows]]
        keys = [(self.settings.seed, epoch, index) for index in indices[rows]]
        start, noise = draw_noise(self.policy, denoiser, keys)
        return TrajectoryStarts(
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

    def _observe_first(self, batches: Iterable[TrajectoryStarts], terms: Sequence[Term]) -> None:
        """Score the first minibatch's images without gradient, as several rewards are mixed only once standardised.

        Raises:
            UserError: if there is one image only.
        """
        found: dict[str, list[Tensor]] = {}
        for batch in batches:
            _, clean = self._climber.walk(batch, terms)
            for term in terms:
                for name, values in self.head.scores(clean[term.step], batch.texts, batch.metadata).items():
                    found.setdefault(name, []).append(values)
        scores = self._gather({name: torch.cat(values) for name, values in found.items()})
        if any(len(values) < 2 for values in scores.values()):
            raise UserError(
                "several rewards are standardised before they are added, and one image has no standard deviation: set "
                "train.batch_size to 2 or more"
            )
        self.head.mix.observe(scores)
