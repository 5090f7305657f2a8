"""A training run: prompts → rollout → scoring → credit → update → metrics, evaluation, checkpoint, report."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from sdpo.assembly import Parts, build
from sdpo.assembly.checks import check_names
from sdpo.assembly.processes import join_processes
from sdpo.assembly.user_objects import Given, GivenPrompts
from sdpo.config import Config
from sdpo.loop.clock import Clock
from sdpo.loop.collect import sample_and_score
from sdpo.loop.epoch_row import epoch_row
from sdpo.loop.learned import Learned
from sdpo.loop.normalization import normalize
from sdpo.loop.returns import epoch_returns
from sdpo.loop.scoring import Scores
from sdpo.loop.update_result import Metrics
from sdpo.method.types import Trajectories
from sdpo.rewards.base import Reward
from sdpo.run.directory import DEFAULT, RunDirectory, create
from sdpo.run.environment import check_format
from sdpo.run.ownership import check_directory
from sdpo.run.progress import ProgressBar
from sdpo.session import Session
from sdpo.system.lock import RunLock


class Trainer:
    """A training run.

    Args:
        config: the configuration; None loads the preset `emoji`.
        pipeline: the user's own diffusers pipeline, instead of `config.model`.
        reward: the user's own callable `(images, prompts, metadata) → scores`, instead of `config.rewards`.
        prompts: prompts instead of `config.prompts`: a list of them, a named set or a file (unseen prompts are
            left out then), or a mapping of `train` and `unseen` to any of these.
        clock: counts the seconds of the phases of an epoch; None counts them without waiting for the device.

    Attributes:
        config: the configuration, with the user's own objects described in it.
        parts: the parts of the run.
        session: the state of the run and its directory.

    Raises:
        UserError: if a setting is not legal, a part cannot be made, or another process trains in the directory. Nothing
            has been written then, except that the run's directory may have been created.
    """

    def __init__(
        self,
        config: Config | None = None,
        *,
        pipeline: Any = None,
        reward: Reward | Callable[..., Any] | None = None,
        prompts: GivenPrompts | None = None,
        clock: Clock | None = None,
    ) -> None:
        given = Given(pipeline, reward, prompts)
        self.config = given.describe(config or Config.load())
        check_names(self.config, given.rewards)
        processes, sharding = join_processes(self.config)
        run = RunDirectory(Path(self.config.output_dir or DEFAULT))
        check_directory(run, self.config)
        create(run.path, processes.is_main)
        lock = RunLock(run.lock) if processes.is_main else contextlib.nullcontext()
        with lock:  # another process that trains here is reported before the models are loaded
            check_format(run)
            self.parts: Parts = build(self.config, processes, given=given, sharding=sharding, clock=clock)
        self.config = self.parts.config
        self.session = Session(self.parts, run, lock)

    def train(self) -> Path:
        """Train to the last epoch, from the newest checkpoint if there is one.

        Returns:
            The path of the report.

        Raises:
            UserError: if a reward or a callback fails, the loss diverges, or the disk or the memory is full; the last
                checkpoint stays.
            Terminated: if SIGTERM arrives, which is handled while this call runs.
        """
        session = self.session
        with session.running() as interruptions:
            session.start()
            with ProgressBar(self.config.epochs, session.epoch) as progress:
                while not session.is_over:
                    progress.advance(self.train_epoch())
                    interruptions.check()
            return session.finish()

    def train_epoch(self) -> dict[str, Any]:
        """Train one epoch; returns its row of metrics.

        Raises:
            UserError: if a reward or a callback fails, or a value is not finite.
        """
        parts, session, epoch = self.parts, self.session, self.session.epoch + 1
        start, evaluations = time.perf_counter(), parts.policy.evaluations
        with parts.precision(), session.explaining_divergence(epoch):
            learned = self.learn(epoch)
            spent = learned.costs(parts.policy.evaluations - evaluations, time.perf_counter() - start)
            counters, rate = session.counters.plus(spent, parts.processes), parts.optimization.learning_rate
            row = epoch_row(epoch, counters, learned.metrics, learned.rewards, rate, parts.processes)
            if parts.evaluator.is_due(epoch):
                row |= session.evaluate(epoch, counters)
        session.save(epoch, row, counters)
        return row

    def learn(self, epoch: int) -> Learned:
        """Make the epoch's policy update, its update by reward gradients, or both."""
        learned = []
        if self.parts.update is not None:
            trajectories, scores = self.collect(epoch)
            metrics = self.update(epoch, trajectories, self.credit(trajectories, scores))
            learned.append(Learned.from_policy(metrics, trajectories, scores))
        if self.parts.gradient is not None:
            learned.append(self.parts.climb(epoch, self.session.micro_batches.update))
        return Learned.joined(learned)

    def collect(self, epoch: int) -> tuple[Trajectories, Scores]:
        """Sample and score this process's groups; returns the trajectories of B groups, and their scores."""
        parts = self.parts
        prompts, indices = parts.batches.deal(epoch)
        sampled = parts.sample(prompts, indices, epoch, self.session.micro_batches.sample)
        with parts.clock("sample"), parts.mix.resident():
            return sample_and_score(sampled, parts.scorer(), parts.batches.groups)

    def credit(self, trajectories: Trajectories, scores: Scores) -> Tensor:
        """Turn dense rewards into advantages, normalised over the groups of all processes; float32 [B, K, T].

        T is 1 for groups that branch at one step.
        """
        parts = self.parts
        with parts.clock("advantage"):
            returns = epoch_returns(parts.policy_update.algorithm, scores.dense, trajectories, parts.processes)
            return normalize(returns, trajectories, parts.normalizer, parts.processes)

    def update(self, epoch: int, trajectories: Trajectories, advantages: Tensor) -> Metrics:
        """Make the optimizer steps of an epoch, and refuse values that are not finite; returns the update's metrics."""
        parts, update, micro_batch = self.parts, self.parts.policy_update, self.session.micro_batches.update
        with parts.clock("update"):
            result = update.run(trajectories, advantages, parts.denoiser, parts.embeddings, epoch, micro_batch)
        update.check(result, epoch, parts.processes)
        return result.metrics
