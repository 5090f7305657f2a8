"""Sampled and scored groups at fixed weights, with exact rewards, and what each plan reads of their latents."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from sdpo.assembly import Parts
from sdpo.commands.signal.alternatives import Alternative
from sdpo.loop.collect import gather_scores, sample_and_score
from sdpo.loop.normalization import normalize
from sdpo.loop.policy_factors import policy_factors
from sdpo.loop.returns import epoch_returns
from sdpo.loop.score_vectors import ScoreVectors
from sdpo.loop.scoring import Scorer
from sdpo.loop.visits import Visits
from sdpo.method.advantages import Normalizer
from sdpo.method.reward_plans import AllSteps, RewardPlan
from sdpo.method.types import Trajectories


@dataclass(frozen=True)
class PlanQueries:
    """The queries of a reward plan in the latents of B groups.

    Attributes:
        steps: the steps that the plan scores, int64 [B, K, Q].
        similarity: what its interpolation needs; None where it needs nothing.
    """

    steps: Tensor
    similarity: Tensor | None


@dataclass(frozen=True)
class ScoredEpoch:
    """The groups of one epoch.

    Attributes:
        trajectories: B groups of K trajectories.
        exact: the score of every step's own image, float32 [B, K, T].
        queries: what each plan reads of the latents.
    """

    trajectories: Trajectories
    exact: Tensor
    queries: Mapping[RewardPlan, PlanQueries]

    def first_branches(self, branches: int) -> Trajectories:
        """The trajectories of the first branches of each group."""
        whole = self.trajectories
        return replace(whole, states=whole.states[:, :branches], log_prob=whole.log_prob[:, :branches])

    def dense(self, plan: RewardPlan, branches: int) -> Tensor:
        """The dense rewards of the first branches under a plan, from the exact ones, [B, `branches`, T]."""
        asked, exact = self.queries[plan], self.exact[:, :branches]
        steps = asked.steps[:, :branches]
        similarity = None if asked.similarity is None else asked.similarity[:, :branches]
        return plan.dense(exact.gather(2, steps), steps, similarity, exact.shape[2])


def sample_epoch(
    parts: Parts, plans: Iterable[RewardPlan], epoch: int, limit: int, advance: Callable[[int], None]
) -> ScoredEpoch:
    """Sample the groups of an epoch as training does, and score the image of every step.

    Args:
        parts: the parts of the run.
        plans: the reward plans whose queries are recorded.
        epoch: the epoch, from 1.
        limit: the largest number of groups; the epoch's first ones are taken.
        advance: called with the number of groups that have been sampled since its last call.

    Raises:
        UserError: if a reward fails, or a value is not finite.
    """
    dealt, numbers = parts.batches.deal(epoch)
    prompts, indices = dealt[:limit], numbers[:limit]
    asked: dict[RewardPlan, list[PlanQueries]] = {plan: [] for plan in plans}

    def recorded() -> Iterator[Trajectories]:
        for part in parts.rollout(prompts, indices, epoch, parts.micro_batches.sample):
            assert part.x0 is not None, "a new part has its clean latents"
            for plan, found in asked.items():
                steps = plan.steps(part.x0)
                found.append(PlanQueries(steps, plan.similarity(part.x0, steps)))
            yield part
            advance(len(part.prompts))

    with parts.mix.resident():
        trajectories, scores = sample_and_score(recorded(), _exact_scorer(parts), len(prompts))
    return ScoredEpoch(trajectories, scores.dense, {plan: _joined(found) for plan, found in asked.items()})


def _exact_scorer(parts: Parts) -> Scorer:
    """A scorer of every step's image, whatever the run's own plan asks for."""
    return Scorer(
        parts.backbone,
        parts.mix,
        AllSteps(),
        decode_batch=parts.decode_batch,
        batch_size=parts.config.scoring.batch_size,
        gather=partial(gather_scores, processes=parts.processes),
        clock=parts.clock,
    )


def _joined(parts: list[PlanQueries]) -> PlanQueries:
    similarities = [part.similarity for part in parts if part.similarity is not None]
    return PlanQueries(torch.cat([part.steps for part in parts]), torch.cat(similarities) if similarities else None)


def factors_of_epochs(
    epochs: Iterable[ScoredEpoch],
    scores: Iterable[ScoreVectors],
    alternative: Alternative,
    normalizer: Normalizer,
    visits: Visits,
    parts: Parts,
) -> Tensor:
    """The weights of the scores in an alternative's gradient, epoch by epoch, as training would have them.

    Args:
        epochs: the epochs in order.
        scores: the scores of each epoch.
        alternative: the alternative.
        normalizer: a normaliser without statistics, which sees the epochs in order.
        visits: which steps its update visits.
        parts: the parts of the run.

    Returns:
        float32 [B of all epochs, K, T] on the CPU, K those of the alternative.
    """
    found = []
    for epoch, scored in zip(epochs, scores, strict=True):
        trajectories = epoch.first_branches(alternative.branches)
        dense = epoch.dense(alternative.algorithm.reward_plan, alternative.branches)
        returns = epoch_returns(alternative.algorithm, dense, trajectories, parts.processes)
        advantages = normalize(returns, trajectories, normalizer, parts.processes)
        reference = scored.reference_log_prob
        if reference is not None:
            reference = reference[:, : alternative.branches].to(advantages.device)
        found.append(policy_factors(alternative.algorithm, trajectories, advantages, visits, reference).cpu())
    return torch.cat(found)
