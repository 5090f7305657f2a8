"""The parts of a training run, as `assembly.build` makes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

from sdpo.assembly.callbacks import Callbacks
from sdpo.assembly.micro_batches import MicroBatches
from sdpo.assembly.model_parts import ModelParts
from sdpo.evaluation.evaluator import Evaluator
from sdpo.loop.batches import Batches
from sdpo.loop.branched_rollout import BranchedRollout
from sdpo.loop.clock import Clock
from sdpo.loop.collect import gather_scores
from sdpo.loop.gradient_update import GradientUpdate
from sdpo.loop.learned import Learned
from sdpo.loop.optimizer import Optimization
from sdpo.loop.policy_update import PolicyUpdate
from sdpo.loop.reward_mix import RewardMix
from sdpo.loop.rollout import rollout
from sdpo.loop.scoring import Scorer
from sdpo.method.advantages import Normalizer
from sdpo.method.algorithms import AnyAlgorithm
from sdpo.method.denoisers import Denoiser
from sdpo.method.types import Trajectories
from sdpo.prompts import Prompt


@dataclass(frozen=True)
class Parts(ModelParts):
    """The parts of a training run.

    Attributes:
        prompts: the training prompts.
        denoiser: the schedule of T steps that is trained on.
        algorithm: the objective, of policy updates, reward gradients or both.
        batches: deals the prompts of each epoch.
        mix: the trained rewards of policy updates as one number.
        normalizer: turns returns into advantages.
        optimization: the optimizer of the trained weights, with their schedule and average.
        update: the policy update; None where the algorithm makes none.
        gradient: the update by the gradient of rewards; None where the algorithm follows none.
        evaluator: the evaluations of the run.
        micro_batches: groups a network call, as chosen for this machine; a resumed run keeps those of its start.
        share_first_step: whether a group's branches share the network evaluation of the first step.
        branched: samples groups whose branches part at one step; None where `sample.branch_at` is null.
        callbacks: the user's callbacks.
        clock: counts the seconds of the phases of an epoch.
        precision: makes a context with the matrix precision that `model.tf32` asks for.
    """

    prompts: Sequence[Prompt]
    denoiser: Denoiser
    algorithm: AnyAlgorithm
    batches: Batches
    mix: RewardMix
    normalizer: Normalizer
    optimization: Optimization
    update: PolicyUpdate | None
    gradient: GradientUpdate | None
    evaluator: Evaluator
    micro_batches: MicroBatches
    share_first_step: bool
    branched: BranchedRollout | None
    callbacks: Callbacks
    clock: Clock
    precision: Callable[[], AbstractContextManager[Any]]

    def sample(
        self, prompts: Sequence[Prompt], indices: Sequence[int], epoch: int, micro_batch: int
    ) -> Iterator[Trajectories]:
        """Sample the groups that an epoch learns from, a micro-batch at a time: by `branched` where there is one.

        Args:
            prompts: the prompts of B groups.
            indices: the global sample indices of the B groups.
            epoch: the epoch, from 1.
            micro_batch: groups a network call.
        """
        return (self.branched or self.rollout)(prompts, indices, epoch, micro_batch)

    def rollout(
        self, prompts: Sequence[Prompt], indices: Sequence[int], epoch: int, micro_batch: int
    ) -> Iterator[Trajectories]:
        """Sample groups of whole trajectories, a micro-batch at a time.

        Args:
            prompts: the prompts of B groups.
            indices: the global sample indices of the B groups.
            epoch: the epoch, from 1.
            micro_batch: groups a network call.
        """
        return rollout(
            self.policy,
            self.denoiser,
            self.embeddings,
            prompts,
            indices,
            seed=self.config.seed,
            epoch=epoch,
            branches=self.algorithm.branches,
            micro_batch=micro_batch,
            shared_noise=self.config.sample.shared_noise,
            share_first_step=self.share_first_step,
        )

    @property
    def policy_update(self) -> PolicyUpdate:
        """The policy update of a run that makes one."""
        assert self.update is not None, "asked for in runs with policy updates alone"
        return self.update

    def climb(self, epoch: int, micro_batch: int) -> Learned:
        """Sample this process's trajectories and climb the gradient of their rewards.

        Args:
            epoch: the epoch, from 1.
            micro_batch: trajectories a network call.

        Raises:
            UserError: if a reward fails, or a value is not finite.
        """
        update = self.gradient
        assert update is not None, "asked for in runs by reward gradients alone"
        prompts, indices = self.batches.deal(epoch)
        with self.clock("update"), update.head.mix.resident():
            outcome = update.run(prompts, indices, self.embeddings, epoch, micro_batch)
        update.check(outcome.result, epoch, self.processes)
        return Learned(outcome.result.metrics, outcome.rewards, len(prompts), outcome.queries)

    def scorer(self) -> Scorer:
        """Make the scorer of one epoch's trajectories."""
        branching = None if self.branched is None else self.branched.branching
        return Scorer(
            self.backbone,
            self.mix,
            self.policy_update.algorithm.reward_plan,
            decode_batch=self.decode_batch,
            batch_size=self.config.scoring.batch_size,
            gather=partial(gather_scores, processes=self.processes),
            clock=self.clock,
            shows_first=branching is None or branching.sees_first,
            shows_last=branching is None or branching.sees_last,
        )
